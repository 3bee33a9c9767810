#include "launch.h"

#include "../ops/block_reuse.h"
