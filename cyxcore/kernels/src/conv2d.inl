static void NAME(fill_conv2d)(cyx_table table) { (void)table; }
