// One of CuTe's Hopper tutorials (-DTUTORIAL='"wgmma_sm90.cu"'), its kernels and its host code unchanged, linked against
// a CUDA runtime that launches nothing: it writes down the fatbin, the launch and the tensor maps asked for, so that
// the kernels' parameters are those that CuTe built.
//
//   cute fatbin OUT                                            the fatbin of this program
//   cute launch nt|tn m n k A B C KERNEL=bytes,bytes,… …       the launch, on stdout; A, B, C are device addresses and
//                                                              bytes the sizes of a kernel's parameters
#define main static tutorial_main
#include TUTORIAL
#undef main

#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

const char* fatbin;
// Kernels are registered before this file's own objects are constructed.
std::map<const void*, std::string>& names() {
    static std::map<const void*, std::string> all;
    return all;
}
std::map<std::string, std::vector<size_t>> sizes;
int maps;

template <class T>
void list(const char* label, const T* values, int count) {
    printf("%s", label);
    for (int i = 0; i < count; ++i) printf(" %llu", static_cast<unsigned long long>(values[i]));
    printf("\n");
}

void record(const void* function, dim3 grid, dim3 block, dim3 cluster, size_t shared, void** arguments) {
    const std::string& name = names()[function];
    const unsigned launch[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z, cluster.x, cluster.y, cluster.z};
    printf("kernel %s\n", name.c_str());
    list("launch", launch, 9);
    printf("shared %zu\n", shared);
    for (size_t i = 0; i < sizes[name].size(); ++i) {
        list("argument", static_cast<const unsigned char*>(arguments[i]), sizes[name][i]);
    }
}

}  // namespace

// Device code has some of these functions already.
#ifndef __CUDA_ARCH__
extern "C" {

struct Wrapper {
    int magic, version;
    const char* data;
    void* more;
};

void** __cudaRegisterFatBinary(void* wrapper) {
    fatbin = static_cast<Wrapper*>(wrapper)->data;
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    names()[host] = device;
}

// Referred to by code that is never run.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { abort(); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { abort(); }
cudaError_t cudaSetDevice(int) { abort(); }
cudaError_t cudaMemGetInfo(size_t*, size_t*) { abort(); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int) { abort(); }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "no error"; }
const char* cudaGetErrorName(cudaError_t) { return "no error"; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
    dim3 cluster(1, 1, 1);
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
            const auto& value = config->attrs[i].val.clusterDim;
            cluster = dim3(value.x, value.y, value.z);
        }
    }
    record(function, config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes, arguments);
    return cudaSuccess;
}

// The map itself is the emulator's to encode; what stands here says which one belongs here.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
    const unsigned long long scalars[] = {static_cast<unsigned long long>(type),
                                          rank,
                                          reinterpret_cast<unsigned long long>(address),
                                          static_cast<unsigned long long>(interleave),
                                          static_cast<unsigned long long>(swizzle),
                                          static_cast<unsigned long long>(promotion),
                                          static_cast<unsigned long long>(fill)};
    list("map", scalars, 7);
    list("dims", dims, rank);
    list("strides", strides, rank - 1);
    list("box", box, rank);
    list("element_strides", element_strides, rank);
    memset(map, 0, sizeof *map);
    snprintf(reinterpret_cast<char*>(map), sizeof *map, "tensor map %d", maps++);
    return CUDA_SUCCESS;
}
}
#endif

int main(int argc, char** argv) {
    if (argc == 3 && !strcmp(argv[1], "fatbin")) {
        unsigned long long bytes;
        memcpy(&bytes, fatbin + 8, 8);
        FILE* out = fopen(argv[2], "wb");
        return !out || fwrite(fatbin, 1, 16 + bytes, out) != 16 + bytes || fclose(out);
    }
    if (argc < 10 || strcmp(argv[1], "launch")) return 2;
    for (int i = 9; i < argc; ++i) {
        char* equals = strchr(argv[i], '=');
        if (!equals) return 2;
        auto& list = sizes[std::string(argv[i], equals)];
        for (char* at = equals; *at == '=' || *at == ',';) list.push_back(strtoull(at + 1, &at, 10));
    }
    const bool nt = !strcmp(argv[2], "nt");
    const int m = atoi(argv[3]), n = atoi(argv[4]), k = atoi(argv[5]);
    auto pointer = [&](int i) { return reinterpret_cast<cute::half_t*>(strtoull(argv[i], nullptr, 10)); };
    const cute::half_t one(1.0f), zero(0.0f);
    gemm(nt ? 'N' : 'T', nt ? 'T' : 'N', m, n, k, one, pointer(6), nt ? m : k, pointer(7), nt ? n : k, zero, pointer(8),
         m);
    return 0;
}
