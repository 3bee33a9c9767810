#include "launch.h"

#include "../ops/block_store.h"
