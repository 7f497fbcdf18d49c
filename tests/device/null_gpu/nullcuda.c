/*
 * nullcuda.c: a CUDA runtime (libcudart) for a machine without a GPU.
 *
 * Preloaded before the real libcudart, it answers the runtime calls that torch makes: device memory is host memory,
 * a stream and an event are small structs, copies are memcpy, and kernels are counted but never run. So every result
 * is whatever lay in memory, while all host code (allocator, streams, autocast, optimizers, DDP, graphs) is real.
 * A function that is missing here goes to the real libcudart, which finds no driver and reports an error.
 *
 * Environment:
 *   NULLCUDA_DEVICES  number of devices to pretend (default 8)
 *   NULLCUDA_FORK     set: complain on stderr about CUDA calls in a forked child (a real GPU fails there)
 *   NULLCUDA_TRACE    set: a line on stderr for every stream or device synchronisation
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK cudaSuccess
#define API cudaError_t

/*
 * Copies within the device and from page-locked memory to it, and fills, are left out from this size on: nobody reads
 * what they write, and they cost host time that they do not cost with a GPU.
 */
#define BIG ((size_t)1 << 20)

/* ---------------------------------------------------------------------------------------------------- counters -- */
/* Read them with nullcuda_counts(), in this order (null_gpu.py names them). Atomic: backward runs on its own thread. */
static _Atomic long n_launches;       /* kernels launched through the runtime, captured ones aside */
static _Atomic long n_mallocs;        /* cudaMalloc and its like: what the caching allocator did not have */
static _Atomic long n_copies;         /* copies of any kind, captured ones aside */
static _Atomic long n_syncs;          /* stream and device synchronisations: the host waits */
static _Atomic long n_host_allocs;    /* pinned blocks */
static _Atomic long n_event_syncs;    /* waits of the host for an event */
static _Atomic long n_driver_launches; /* kernels launched through the driver (Triton, inductor): nullcu.c */
static _Atomic long n_graph_launches; /* launches of whole graphs */
static _Atomic long n_captured;       /* kernels and copies recorded into graphs */

void nullcuda_counts(long *out)
{
    out[0] = n_launches;
    out[1] = n_mallocs;
    out[2] = n_copies;
    out[3] = n_syncs;
    out[4] = n_host_allocs;
    out[5] = n_event_syncs;
    out[6] = n_driver_launches;
    out[7] = n_graph_launches;
    out[8] = n_captured;
}

static void trace(const char *what)
{
    if (getenv("NULLCUDA_TRACE"))
        fprintf(stderr, "NULLCUDA %s\n", what);
}

/* Called by what would need the device: notes the first process that did, and complains about its children. */
static void touch(void)
{
    static int first_pid;
    if (!first_pid)
        first_pid = getpid();
    else if (first_pid != getpid() && getenv("NULLCUDA_FORK"))
        fprintf(stderr, "NULLCUDA: CUDA CALL IN A FORKED CHILD %d\n", getpid());
}

/* ------------------------------------------------------------------------------------------------------ errors -- */
/* Nothing fails later than its call, so there is never a last error. */
API cudaGetLastError(void) { return OK; }
API cudaPeekAtLastError(void) { return OK; }
const char *cudaGetErrorName(cudaError_t e) { return e == OK ? "cudaSuccess" : "cudaErrorOfNullGpu"; }

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "null GPU: out of host memory";
    case cudaErrorInvalidDevice: return "null GPU: no such device (NULLCUDA_DEVICES)";
    case cudaErrorStreamCaptureUnsupported: return "null GPU: operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "null GPU: capture ended by an operation not permitted in it";
    default: return "null GPU: some error";
    }
}

/* ----------------------------------------------------------------------------------------------------- devices -- */
static __thread int current_device;
static unsigned long long in_use; /* a bit for each device with memory; for nullcu.c */

int nullcuda_in_use(int d) { return d < 64 && in_use >> d & 1; }

static int devices(void)
{
    static int n = -1;
    if (n < 0) {
        const char *e = getenv("NULLCUDA_DEVICES");
        n = e ? atoi(e) : 8;
    }
    return n;
}

API cudaGetDeviceCount(int *n) { *n = devices(); return OK; }
API cudaGetDevice(int *d) { *d = current_device; return OK; }

API cudaSetDevice(int d)
{
    touch();
    if (d < 0 || d >= devices())
        return cudaErrorInvalidDevice;
    current_device = d;
    return OK;
}

/* The version of the headers it is built with, which are those of torch's own wheels. */
API cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return OK; }
API cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return OK; }

/* The limits of an H100 SXM: torch picks kernels and launch sizes by them. */
#undef cudaGetDeviceProperties
API cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NULL H100");
    p->major = 9;
    p->minor = 0;
    p->multiProcessorCount = 132;
    p->totalGlobalMem = 80ul << 30;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = 65536;
    p->regsPerMultiprocessor = 65536;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->unifiedAddressing = 1;
    p->textureAlignment = 512;
    return OK;
}

API cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d)
{
    switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    default: *v = 0;
    }
    return OK;
}

API cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
API cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d); return OK; }
API cudaDeviceCanAccessPeer(int *can, int d, int peer) { *can = 1; return OK; }
API cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return OK; }
API cudaProfilerStart(void) { return OK; }
API cudaProfilerStop(void) { return OK; }

/* --------------------------------------------------------------------------------------------- capture (graphs) -- */
/*
 * One capture at a time for the whole process. A stream takes part if its `capture` is the number of the present one:
 * the one that began it, and those that waited for an event recorded in it. A graph is the number of its nodes.
 */
struct null_stream { unsigned long long capture; };
struct null_event { unsigned long long capture; int recorded; };
struct null_graph { long nodes; };

static struct null_stream default_stream; /* the stream NULL */
static unsigned long long present_capture, last_capture;
static struct null_graph *present_graph;
static int capture_is_invalid;
static enum cudaStreamCaptureMode present_mode; /* of the stream that captures */
static __thread int captures_here;              /* this thread began the present capture */
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static struct null_stream *stream_of(cudaStream_t s)
{
    /* 0, 1 and 2 are the default streams: NULL, cudaStreamLegacy, cudaStreamPerThread. */
    return (size_t)s <= 2 ? &default_stream : (struct null_stream *)s;
}

static int capturing(cudaStream_t s) { return present_capture && stream_of(s)->capture == present_capture; }

/* What a real GPU refuses during a capture: it invalidates the capture, too. */
static API refuse(const char *what)
{
    trace(what);
    capture_is_invalid = 1;
    return cudaErrorStreamCaptureUnsupported;
}

/* Whether a call that is potentially unsafe in a capture (an allocation, say) is forbidden to this thread now. */
static int unsafe(void)
{
    if (!present_capture || thread_mode == cudaStreamCaptureModeRelaxed || present_mode == cudaStreamCaptureModeRelaxed)
        return 0;
    return captures_here || present_mode == cudaStreamCaptureModeGlobal;
}

/* Records a kernel or a copy where the stream captures. Returns whether it did. */
static int record(cudaStream_t s)
{
    if (!capturing(s))
        return 0;
    n_captured++;
    present_graph->nodes++;
    return 1;
}

API cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    touch();
    if (present_capture || (size_t)s <= 1)
        return cudaErrorStreamCaptureUnsupported;
    present_capture = stream_of(s)->capture = ++last_capture;
    present_graph = calloc(1, sizeof *present_graph);
    present_mode = mode;
    captures_here = 1;
    capture_is_invalid = 0;
    return OK;
}

API cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = capture_is_invalid ? NULL : (cudaGraph_t)present_graph;
    present_capture = 0;
    captures_here = 0;
    return capture_is_invalid ? cudaErrorStreamCaptureInvalidated : OK;
}

API cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    *status = capturing(s) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return OK;
}

API cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                             cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                             const cudaGraphEdgeData **edges, size_t *n)
{
    cudaStreamIsCapturing(s, status);
    if (id) *id = present_capture;
    if (graph) *graph = (cudaGraph_t)present_graph;
    if (dependencies) *dependencies = NULL;
    if (edges) *edges = NULL;
    if (n) *n = 0;
    return OK;
}

API cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges,
                                        size_t n, unsigned flags)
{
    return OK;
}

API cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return OK;
}

/* An executable graph is the graph itself; neither is freed, for one may outlive the other. */
API cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    *x = (cudaGraphExec_t)g;
    return OK;
}

API cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    return cudaGraphInstantiate(x, g, flags);
}

API cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { touch(); n_graph_launches++; return OK; }
API cudaGraphUpload(cudaGraphExec_t x, cudaStream_t s) { return OK; }
API cudaGraphDestroy(cudaGraph_t g) { return OK; }
API cudaGraphExecDestroy(cudaGraphExec_t x) { return OK; }
API cudaGraphDebugDotPrint(cudaGraph_t g, const char *path, unsigned flags) { return OK; }
API cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned flags) { return OK; }
API cudaUserObjectRelease(cudaUserObject_t o, unsigned n) { return OK; }

API cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t destroy, unsigned n, unsigned flags)
{
    *o = (cudaUserObject_t)p; /* never destroyed, like the graph that keeps it */
    return OK;
}

/* torch warns of an empty graph; it asks for the number only (nodes == NULL). */
API cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    if (nodes)
        memset(nodes, 0, *n * sizeof *nodes);
    *n = ((struct null_graph *)g)->nodes;
    return OK;
}

API cudaDeviceGetGraphMemAttribute(int d, enum cudaGraphMemAttributeType a, void *v)
{
    *(unsigned long long *)v = 0;
    return OK;
}

API cudaDeviceSetGraphMemAttribute(int d, enum cudaGraphMemAttributeType a, void *v) { return OK; }

/* ------------------------------------------------------------------------------------------- streams and events -- */
API cudaStreamCreate(cudaStream_t *s) { *s = calloc(1, sizeof(struct null_stream)); return OK; }
API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreate(s); }
API cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreate(s); }
API cudaStreamDestroy(cudaStream_t s) { return OK; }
API cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return OK; }
API cudaStreamQuery(cudaStream_t s) { return capturing(s) ? refuse("streamQuery in a capture") : OK; }

API cudaStreamSynchronize(cudaStream_t s)
{
    touch();
    if (capturing(s))
        return refuse("streamSynchronize in a capture");
    n_syncs++;
    trace("streamSynchronize");
    return OK;
}

API cudaDeviceSynchronize(void)
{
    touch();
    if (unsafe())
        return refuse("deviceSynchronize in a capture");
    n_syncs++;
    trace("deviceSynchronize");
    return OK;
}

API cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    int of_capture = present_capture && ((struct null_event *)e)->capture == present_capture;
    if (of_capture && (size_t)s <= 1)
        return refuse("the default stream waits for a capture");
    if (capturing(s) && !of_capture && ((struct null_event *)e)->recorded && !(flags & cudaEventWaitExternal))
        return refuse("a capture waits for an event outside it");
    if (of_capture)
        stream_of(s)->capture = present_capture; /* the stream joins the capture */
    return OK;
}

API cudaEventCreate(cudaEvent_t *e) { *e = calloc(1, sizeof(struct null_event)); return OK; }
API cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return cudaEventCreate(e); }
API cudaEventDestroy(cudaEvent_t e) { free(e); return OK; }
API cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return OK; }

API cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    ((struct null_event *)e)->capture = capturing(s) ? present_capture : 0;
    ((struct null_event *)e)->recorded = 1;
    return OK;
}

API cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return cudaEventRecord(e, s); }

/* All work is done at once, so an event has always happened; one of the present capture must not be asked about. */
API cudaEventQuery(cudaEvent_t e)
{
    if (present_capture && ((struct null_event *)e)->capture == present_capture)
        return refuse("eventQuery in a capture");
    return OK;
}

API cudaEventSynchronize(cudaEvent_t e)
{
    if (unsafe())
        return refuse("eventSynchronize in a capture");
    n_event_syncs++;
    return cudaEventQuery(e);
}

/* ------------------------------------------------------------------------------------------------------ memory -- */
/* Never written unless copied to, so the pages of activations are never backed: a whole step takes about 1 GB. */
static API allocate(void **p, size_t n)
{
    touch();
    if (unsafe())
        return refuse("allocation in a capture");
    if (current_device < 64)
        in_use |= 1ull << current_device;
    n_mallocs++;
    *p = NULL;
    return posix_memalign(p, 2 << 20, n) ? cudaErrorMemoryAllocation : OK;
}

API cudaMalloc(void **p, size_t n) { return allocate(p, n); }
API cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return allocate(p, n); }
API cudaMallocManaged(void **p, size_t n, unsigned flags) { return allocate(p, n); }
API cudaFree(void *p) { free(p); return OK; }
API cudaFreeAsync(void *p, cudaStream_t s) { free(p); return OK; }
API cudaMemGetInfo(size_t *free_, size_t *total) { *free_ = 79ul << 30; *total = 80ul << 30; return OK; }

/* Pinned memory: remembered and never freed, so that cudaPointerGetAttributes can tell it (is_pinned). */
#define MAX_PINNED 4096
static struct { char *start; size_t size; } pinned[MAX_PINNED];
static int n_pinned;

API cudaHostAlloc(void **p, size_t n, unsigned flags)
{
    touch();
    if (unsafe())
        return refuse("page-locked allocation in a capture");
    n_host_allocs++;
    *p = NULL;
    if (posix_memalign(p, 4096, n))
        return cudaErrorMemoryAllocation;
    if (n_pinned < MAX_PINNED) {
        pinned[n_pinned].start = *p;
        pinned[n_pinned++].size = n;
    }
    return OK;
}

API cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
API cudaFreeHost(void *p) { return OK; }
API cudaHostRegister(void *p, size_t n, unsigned flags)
{
    touch();
    if (n_pinned < MAX_PINNED) {
        pinned[n_pinned].start = p;
        pinned[n_pinned++].size = n;
    }
    return OK;
}

API cudaHostUnregister(void *p)
{
    for (int i = 0; i < n_pinned; i++)
        if (pinned[i].start == p)
            pinned[i].size = 0;
    return OK;
}

API cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    for (int i = 0; i < n_pinned; i++) {
        if ((char *)p >= pinned[i].start && (char *)p < pinned[i].start + pinned[i].size) {
            a->type = cudaMemoryTypeHost;
            a->hostPointer = a->devicePointer = (void *)p;
        }
    }
    return OK;
}

static int is_pinned(const void *p)
{
    for (int i = 0; i < n_pinned; i++)
        if ((char *)p >= pinned[i].start && (char *)p < pinned[i].start + pinned[i].size)
            return 1;
    return 0;
}

API cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    touch();
    if (record(s))
        return OK;
    n_copies++;
    if (n < BIG || (kind != cudaMemcpyDeviceToDevice && !(kind == cudaMemcpyHostToDevice && is_pinned(from))))
        memcpy(to, from, n);
    return OK;
}

API cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind)
{
    if (unsafe())
        return refuse("memcpy in a capture");
    n_copies++;
    memcpy(to, from, n);
    return OK;
}

API cudaMemcpyPeerAsync(void *to, int d, const void *from, int e, size_t n, cudaStream_t s)
{
    if (record(s))
        return OK;
    n_copies++;
    memcpy(to, from, n);
    return OK;
}

API cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      enum cudaMemcpyKind kind, cudaStream_t s)
{
    if (record(s))
        return OK;
    n_copies++;
    for (size_t i = 0; i < height; i++)
        memcpy((char *)to + i * to_pitch, (char *)from + i * from_pitch, width);
    return OK;
}

/* Symbols are variables of kernels, which do not exist. */
API cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t offset, enum cudaMemcpyKind kind)
{
    return OK;
}

API cudaGetSymbolAddress(void **p, const void *symbol) { *p = (void *)symbol; return OK; }

API cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return OK; }

API cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
    if (!record(s) && n < BIG)
        memset(p, value, n);
    return OK;
}

/* ----------------------------------------------------------------------------------------------------- kernels -- */
static API launch(cudaStream_t s)
{
    touch();
    if (!record(s))
        n_launches++;
    return OK;
}

/* For nullcu.c: a launch through the driver. */
void nullcuda_driver_launch(void *stream)
{
    touch();
    if (!record(stream))
        n_driver_launches++;
}

API cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s)
{
    return launch(s);
}

API cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s)
{
    return launch(s);
}

API cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **args)
{
    return launch(config->stream);
}

/* What nvcc's host code of `kernel<<<...>>>` calls since CUDA 13: the handle of a kernel, then its launch. */
API __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return OK; }

API __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s)
{
    return launch(s);
}

API cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f)
{
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->binaryVersion = a->ptxVersion = 90;
    return OK;
}

API cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return OK; }

API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared)
{
    *n = 2;
    return OK;
}

API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared,
                                                           unsigned flags)
{
    *n = 2;
    return OK;
}

API cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) { f(data); return OK; }

/* ------------------------------------------------------------------------------- entry points of the driver API -- */
/* torch asks the runtime for driver functions by name (expandable segments, for one): each is one that succeeds. */
static int succeed(void) { return 0; }

API cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
                                     enum cudaDriverEntryPointQueryResult *result)
{
    *f = (void *)succeed;
    if (result)
        *result = cudaDriverEntryPointSuccess;
    return OK;
}
