/* A loop around ONNX Runtime's C interface, to hold the agent's timing against: native_loop LIBRARY MODEL.onnx INPUT OUTPUT DIM...

   One input of floats, all of them 0.5; one thread; the same options as `fleetfit.runtimes.onnxruntime`. For each number N on
   standard input it makes N calls and writes their nanoseconds on a line. The wheel has the library and no header: the few
   functions are declared here by their places in `struct OrtApi` of onnxruntime_c_api.h (API version 29, MIT License), to whose
   end new ones are added only. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { API_VERSION = 23, FATAL = 4, DEVICE_ALLOCATOR = 0, DEFAULT_MEMORY = 0, FLOATS = 1, MOST_DIMS = 8 };
enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, CREATE_SESSION_OPTIONS = 10, SET_INTRA_OP_NUM_THREADS = 24,
  SET_INTER_OP_NUM_THREADS = 25, CREATE_TENSOR_WITH_DATA = 49, CREATE_CPU_MEMORY_INFO = 69, ADD_SESSION_CONFIG_ENTRY = 130,
  RUN_WITH_BINDING = 133, CREATE_IO_BINDING = 134, BIND_INPUT = 136, BIND_OUTPUT_TO_DEVICE = 138
};

typedef struct { const void *const *(*get_api)(uint32_t); const char *(*version)(void); } ApiBase;
typedef void *Status;

static const void *const *api;

static void check(Status status) {
  if (!status) return;
  const char *(*message)(Status) = (const char *(*)(Status))api[GET_ERROR_MESSAGE];
  fprintf(stderr, "native_loop: %s\n", message(status));
  exit(1);
}

#define CALL(place, types, ...) check(((Status(*) types)api[place])(__VA_ARGS__))

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int count, char **arguments) {
  if (count < 6 || count > 5 + MOST_DIMS) return 2;
  void *library = dlopen(arguments[1], RTLD_NOW);
  const ApiBase *(*get_base)(void) = library ? (const ApiBase *(*)(void))dlsym(library, "OrtGetApiBase") : NULL;
  if (!get_base || !(api = get_base()->get_api(API_VERSION))) {
    fprintf(stderr, "native_loop: %s has no OrtGetApiBase of version %d\n", arguments[1], API_VERSION);
    return 1;
  }
  void *env, *options, *session, *memory, *input, *binding;
  CALL(CREATE_ENV, (int, const char *, void **), FATAL, "native_loop", &env);
  CALL(CREATE_SESSION_OPTIONS, (void **), &options);
  CALL(SET_INTRA_OP_NUM_THREADS, (void *, int), options, 1);
  CALL(SET_INTER_OP_NUM_THREADS, (void *, int), options, 1);
  CALL(ADD_SESSION_CONFIG_ENTRY, (void *, const char *, const char *), options, "session.force_spinning_stop", "1");
  CALL(CREATE_SESSION, (void *, const char *, void *, void **), env, arguments[2], options, &session);

  int64_t shape[MOST_DIMS], elements = 1;
  size_t rank = (size_t)(count - 5);
  for (size_t at = 0; at < rank; at++) elements *= shape[at] = atoll(arguments[5 + at]);
  float *values = malloc((size_t)elements * sizeof(float));
  if (!values) return 1;
  for (int64_t at = 0; at < elements; at++) values[at] = 0.5f;
  CALL(CREATE_CPU_MEMORY_INFO, (int, int, void **), DEVICE_ALLOCATOR, DEFAULT_MEMORY, &memory);
  CALL(CREATE_TENSOR_WITH_DATA, (void *, void *, size_t, const int64_t *, size_t, int, void **), memory, values,
       (size_t)elements * sizeof(float), shape, rank, FLOATS, &input);
  CALL(CREATE_IO_BINDING, (void *, void **), session, &binding);
  CALL(BIND_INPUT, (void *, const char *, void *), binding, arguments[3], input);
  CALL(BIND_OUTPUT_TO_DEVICE, (void *, const char *, void *), binding, arguments[4], memory);
  Status (*run)(void *, void *, void *) = (Status(*)(void *, void *, void *))api[RUN_WITH_BINDING];

  long wanted;
  while (scanf("%ld", &wanted) == 1) {
    int64_t *took = malloc((size_t)wanted * sizeof(int64_t));
    if (!took) return 1;
    for (long at = 0; at < wanted; at++) {
      int64_t before = now();
      Status status = run(session, NULL, binding);
      took[at] = now() - before;
      check(status);
    }
    for (long at = 0; at < wanted; at++) printf("%lld ", (long long)took[at]);
    printf("\n");
    fflush(stdout);
    free(took);
  }
  return 0;
}
