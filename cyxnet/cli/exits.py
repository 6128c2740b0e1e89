"""The exit codes of `cyx`."""

DONE, WORLD_FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM, as shells count
