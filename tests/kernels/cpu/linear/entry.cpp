// The linear layers of one instruction set as a library of their own, for tests that compile them with a bug.
#include "common/team.cpp"
#include "linear/linear.cpp"

using namespace dynattn::DYNATTN_NAMESPACE;

extern "C" {

int32_t choice(const LinearArgs* args) { return linear_choice(*args); }

int32_t rows(const LinearArgs* args) { return linear_rows(*args); }

int32_t outputs(const LinearArgs* args) { return linear_outputs(*args); }

int32_t nm_weight(const LinearArgs* args) { return linear_nm_weight(*args); }

}  // extern "C"
