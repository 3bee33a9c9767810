#include "vector.h"

#include "../ops/cosine.h"
