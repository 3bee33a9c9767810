#include "vector.h"

#include "../ops/block_reuse.h"
