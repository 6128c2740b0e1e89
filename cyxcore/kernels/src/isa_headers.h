/* Headers a per-instruction-set file needs, read before its target pragma so that nothing outside this
 * project is compiled for a processor that may not be there. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ahead.h"
#include "cyx.h"
#include "elementwise.h"
#include "plan.h"
#include "pool.h"
#include "reduce_plan.h"
#include "shape.h"
#include "tables.h"
