"""ONNX Runtime's C API: declarations only.

The wheel carries no header. OrtApi is an append-only struct of function pointers whose entries
never move, so this struct names the entries that we use, at their ordinals, and pads the rest.
All ordinals were compared with the headers of versions 20 to 29.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    API_VERSION = 29  # the newest whose entries we have checked
    # Of the library: 1.31 and older save packed weights at offsets at which kernels crash. A test
    # compares this with pyproject.toml.
    MIN_MINOR_VERSION = 32

# Opaque.
ctypedef void OrtAllocator
ctypedef void OrtEnv
ctypedef void OrtKeyValuePairs
ctypedef void OrtMapTypeInfo
ctypedef void OrtMemoryInfo
ctypedef void OrtOptionalTypeInfo
ctypedef void OrtRunOptions
ctypedef void OrtSequenceTypeInfo
ctypedef void OrtSession
ctypedef void OrtSessionOptions
ctypedef void OrtStatus
ctypedef void OrtTensorInfo
ctypedef void OrtTypeInfo
ctypedef void OrtValue

# What describes a model's inputs, outputs, and initializers that a caller may replace.
ctypedef OrtStatus* (*CountFn)(const OrtSession*, size_t* out) noexcept nogil
ctypedef OrtStatus* (*TypeInfoFn)(const OrtSession*, size_t index, OrtTypeInfo** out) noexcept nogil
ctypedef OrtStatus* (*NameFn)(
    const OrtSession*, size_t index, OrtAllocator*, char** out
) noexcept nogil

# Thread hooks: ORT asks for each intra-op thread beside the caller's own.
ctypedef void (*ThreadBodyFn)(void*) noexcept nogil
ctypedef void* (*CreateThreadFn)(void* options, ThreadBodyFn body, void* argument) noexcept nogil
ctypedef void (*JoinThreadFn)(const void* handle) noexcept nogil

ctypedef struct OrtApi:
    void* _before_1[1]
    int (*GetErrorCode)(const OrtStatus*) noexcept nogil  # 1
    const char* (*GetErrorMessage)(const OrtStatus*) noexcept nogil  # 2
    OrtStatus* (*CreateEnv)(int level, const char* log_id, OrtEnv** out) noexcept nogil  # 3
    void* _before_7[3]
    OrtStatus* (*CreateSession)(
        const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession** out
    ) noexcept nogil  # 7
    OrtStatus* (*CreateSessionFromArray)(
        const OrtEnv*, const void* model, size_t num_bytes, const OrtSessionOptions*,
        OrtSession** out
    ) noexcept nogil  # 8
    OrtStatus* (*Run)(
        OrtSession*, const OrtRunOptions*, const char* const* input_names,
        const OrtValue* const* inputs, size_t num_inputs, const char* const* output_names,
        size_t num_outputs, OrtValue** outputs
    ) noexcept nogil  # 9
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out) noexcept nogil  # 10
    OrtStatus* (*SetOptimizedModelFilePath)(OrtSessionOptions*, const char* path) noexcept nogil  # 11
    void* _before_14[2]
    OrtStatus* (*EnableProfiling)(OrtSessionOptions*, const char* prefix) noexcept nogil  # 14
    void* _before_22[7]
    OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions*, int level) noexcept nogil  # 22
    OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions*, int level) noexcept nogil  # 23
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int num_threads) noexcept nogil  # 24
    OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int num_threads) noexcept nogil  # 25
    void* _before_30[4]
    CountFn SessionGetInputCount  # 30
    CountFn SessionGetOutputCount  # 31
    CountFn SessionGetOverridableInitializerCount  # 32
    TypeInfoFn SessionGetInputTypeInfo  # 33
    TypeInfoFn SessionGetOutputTypeInfo  # 34
    TypeInfoFn SessionGetOverridableInitializerTypeInfo  # 35
    NameFn SessionGetInputName  # 36
    NameFn SessionGetOutputName  # 37
    NameFn SessionGetOverridableInitializerName  # 38
    OrtStatus* (*CreateRunOptions)(OrtRunOptions** out) noexcept nogil  # 39
    void* _before_46[6]
    OrtStatus* (*RunOptionsSetTerminate)(OrtRunOptions*) noexcept nogil  # 46
    OrtStatus* (*RunOptionsUnsetTerminate)(OrtRunOptions*) noexcept nogil  # 47
    OrtStatus* (*CreateTensorAsOrtValue)(
        OrtAllocator*, const int64_t* shape, size_t rank, int element_type, OrtValue** out
    ) noexcept nogil  # 48
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(
        const OrtMemoryInfo*, void* data, size_t num_bytes, const int64_t* shape, size_t rank,
        int element_type, OrtValue** out
    ) noexcept nogil  # 49
    void* _before_51[1]
    OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out) noexcept nogil  # 51
    OrtStatus* (*FillStringTensor)(
        OrtValue*, const char* const* strings, size_t num_strings
    ) noexcept nogil  # 52
    OrtStatus* (*GetStringTensorDataLength)(const OrtValue*, size_t* out) noexcept nogil  # 53
    OrtStatus* (*GetStringTensorContent)(
        const OrtValue*, void* text, size_t num_bytes, size_t* offsets, size_t num_strings
    ) noexcept nogil  # 54
    OrtStatus* (*CastTypeInfoToTensorInfo)(
        const OrtTypeInfo*, const OrtTensorInfo** out
    ) noexcept nogil  # 55
    OrtStatus* (*GetOnnxTypeFromTypeInfo)(const OrtTypeInfo*, int* out) noexcept nogil  # 56
    void* _before_60[3]
    OrtStatus* (*GetTensorElementType)(const OrtTensorInfo*, int* out) noexcept nogil  # 60
    OrtStatus* (*GetDimensionsCount)(const OrtTensorInfo*, size_t* out) noexcept nogil  # 61
    OrtStatus* (*GetDimensions)(const OrtTensorInfo*, int64_t* shape, size_t rank) noexcept nogil  # 62
    OrtStatus* (*GetSymbolicDimensions)(
        const OrtTensorInfo*, const char** names, size_t rank
    ) noexcept nogil  # 63
    OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorInfo*, size_t* out) noexcept nogil  # 64
    OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo** out) noexcept nogil  # 65
    void* _before_67[1]
    OrtStatus* (*GetValueType)(const OrtValue*, int* out) noexcept nogil  # 67
    void* _before_69[1]
    OrtStatus* (*CreateCpuMemoryInfo)(
        int allocator_type, int memory_type, OrtMemoryInfo** out
    ) noexcept nogil  # 69
    void* _before_75[5]
    OrtStatus* (*AllocatorAlloc)(OrtAllocator*, size_t num_bytes, void** out) noexcept nogil  # 75
    OrtStatus* (*AllocatorFree)(OrtAllocator*, void*) noexcept nogil  # 76
    void* _before_78[1]
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** out) noexcept nogil  # 78
    void* _before_80[1]
    OrtStatus* (*GetValue)(
        const OrtValue*, int index, OrtAllocator*, OrtValue** out
    ) noexcept nogil  # 80
    OrtStatus* (*GetValueCount)(const OrtValue*, size_t* out) noexcept nogil  # 81
    OrtStatus* (*CreateValue)(
        const OrtValue* const* parts, size_t num_parts, int onnx_type, OrtValue** out
    ) noexcept nogil  # 82
    void* _before_93[10]
    void (*ReleaseStatus)(OrtStatus*) noexcept nogil  # 93
    void* _before_95[1]
    void (*ReleaseSession)(OrtSession*) noexcept nogil  # 95
    void (*ReleaseValue)(OrtValue*) noexcept nogil  # 96
    void (*ReleaseRunOptions)(OrtRunOptions*) noexcept nogil  # 97
    void (*ReleaseTypeInfo)(OrtTypeInfo*) noexcept nogil  # 98
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo*) noexcept nogil  # 99
    void (*ReleaseSessionOptions)(OrtSessionOptions*) noexcept nogil  # 100
    void* _before_103[2]
    OrtStatus* (*CastTypeInfoToMapTypeInfo)(
        const OrtTypeInfo*, const OrtMapTypeInfo** out
    ) noexcept nogil  # 103
    OrtStatus* (*CastTypeInfoToSequenceTypeInfo)(
        const OrtTypeInfo*, const OrtSequenceTypeInfo** out
    ) noexcept nogil  # 104
    OrtStatus* (*GetMapKeyType)(const OrtMapTypeInfo*, int* out) noexcept nogil  # 105
    OrtStatus* (*GetMapValueType)(const OrtMapTypeInfo*, OrtTypeInfo** out) noexcept nogil  # 106
    OrtStatus* (*GetSequenceElementType)(
        const OrtSequenceTypeInfo*, OrtTypeInfo** out
    ) noexcept nogil  # 107
    void* _before_110[2]
    OrtStatus* (*SessionEndProfiling)(OrtSession*, OrtAllocator*, char** out) noexcept nogil  # 110
    void* _before_130[19]
    OrtStatus* (*AddSessionConfigEntry)(
        OrtSessionOptions*, const char* key, const char* value
    ) noexcept nogil  # 130
    OrtStatus* (*CreateAllocator)(
        const OrtSession*, const OrtMemoryInfo*, OrtAllocator** out
    ) noexcept nogil  # 131
    void (*ReleaseAllocator)(OrtAllocator*) noexcept nogil  # 132
    void* _before_165[32]
    OrtStatus* (*AddRunConfigEntry)(
        OrtRunOptions*, const char* key, const char* value
    ) noexcept nogil  # 165
    void* _before_192[26]
    OrtStatus* (*HasValue)(const OrtValue*, int* out) noexcept nogil  # 192
    void* _before_196[3]
    OrtStatus* (*SessionOptionsSetCustomCreateThreadFn)(
        OrtSessionOptions*, CreateThreadFn
    ) noexcept nogil  # 196
    OrtStatus* (*SessionOptionsSetCustomThreadCreationOptions)(
        OrtSessionOptions*, void*
    ) noexcept nogil  # 197
    OrtStatus* (*SessionOptionsSetCustomJoinThreadFn)(
        OrtSessionOptions*, JoinThreadFn
    ) noexcept nogil  # 198
    void* _before_228[29]
    OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const char* path) noexcept nogil  # 228
    void* _before_250[21]
    OrtStatus* (*CastTypeInfoToOptionalTypeInfo)(
        const OrtTypeInfo*, const OrtOptionalTypeInfo** out
    ) noexcept nogil  # 250
    OrtStatus* (*GetOptionalContainedTypeInfo)(
        const OrtOptionalTypeInfo*, OrtTypeInfo** out
    ) noexcept nogil  # 251
    void* _before_279[27]
    OrtStatus* (*AddExternalInitializersFromFilesInMemory)(
        OrtSessionOptions*, const char* const* names, char* const* contents, const size_t* sizes,
        size_t num_files
    ) noexcept nogil  # 279
    void* _before_297[17]
    const char* (*GetKeyValue)(const OrtKeyValuePairs*, const char* key) noexcept nogil  # 297
    void* _before_300[2]
    void (*ReleaseKeyValuePairs)(OrtKeyValuePairs*) noexcept nogil  # 300
    void* _before_318[17]
    OrtStatus* (*GetTensorSizeInBytes)(const OrtValue*, size_t* out) noexcept nogil  # 318
    OrtStatus* (*AllocatorGetStats)(
        const OrtAllocator*, OrtKeyValuePairs** out
    ) noexcept nogil  # 319
    void* _before_414[94]
    OrtStatus* (*GetTensorElementTypeAndShapeDataReference)(
        const OrtValue*, int* element_type, const int64_t** shape, size_t* rank
    ) noexcept nogil  # 414

ctypedef struct OrtApiBase:
    const OrtApi* (*GetApi)(uint32_t version) noexcept nogil
    const char* (*GetVersionString)() noexcept nogil

cdef enum OnnxType:
    ONNX_TENSOR = 1
    ONNX_SEQUENCE = 2
    ONNX_MAP = 3
    ONNX_OPAQUE = 4
    ONNX_SPARSE_TENSOR = 5
    ONNX_OPTIONAL = 6

cdef enum ElementType:
    ELEMENT_UNDEFINED = 0
    ELEMENT_FLOAT = 1
    ELEMENT_INT64 = 7
    ELEMENT_STRING = 8

cdef enum ErrorCode:
    ORT_FAIL = 1
    ORT_INVALID_ARGUMENT = 2
    ORT_NO_SUCHFILE = 3
    ORT_NO_MODEL = 4
    ORT_INVALID_PROTOBUF = 7
    ORT_NOT_IMPLEMENTED = 9
    ORT_INVALID_GRAPH = 10

cdef enum:
    LOG_FATAL = 4
    ALLOCATOR_DEVICE = 0
    MEMORY_DEFAULT = 0
    OPTIMIZE_NOTHING = 0
    OPTIMIZE_ALL = 99
