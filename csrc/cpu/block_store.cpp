#include "vector.h"

#include "../ops/block_store.h"
