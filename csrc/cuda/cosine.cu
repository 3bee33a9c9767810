#include "launch.h"

#include "../ops/cosine.h"
