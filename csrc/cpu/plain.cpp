// Whatever the compiler's baseline is: SSE2 on x86-64, NEON on 64-bit ARM.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "level.h"

#define PERILUNE_LEVEL plain
#define PERILUNE_LANES 4
#define PERILUNE_WIDE 0
#define PERILUNE_DOTS 0
#define PERILUNE_TILES 0
#include "kernels.h"
