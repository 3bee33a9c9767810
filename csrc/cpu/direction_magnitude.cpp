#include "vector.h"

#include "../ops/direction_magnitude.h"
