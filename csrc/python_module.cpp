// The Python module vllm._diffusion_C. Importing it loads the library, whose static initialisers
// register the operators; the module itself is empty.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__diffusion_C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_diffusion_C",
                                   nullptr,
                                   0,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
