#include "vector.h"

#include "../ops/norm.h"
