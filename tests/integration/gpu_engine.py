"""An engine's GPU on the emulated driver (tests/emulation): a context, a stream, and memory that
the host cannot touch."""
import ctypes
import os
import pathlib

BIN = pathlib.Path(os.environ.get("CAIRN_TEST_BIN",
                                  pathlib.Path(__file__).parents[2] / "build/test/bin"))
DRIVER = BIN.parent / "test/emulation/libcuda.so.1"
EARLIEST, LATEST, RANDOM = range(3)
DEVICE_BYTES = 16 << 20


class Gpu:
    def __init__(self) -> None:
        self.cuda = ctypes.CDLL(str(DRIVER))
        self.cuda.emu_violation_text.restype = ctypes.c_char_p
        self.cuda.emu_violations.restype = ctypes.c_uint64
        self._call("cuInit", 0)
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self._call("cuCtxPushCurrent_v2", self.context)
        self.memory = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(self.memory), ctypes.c_size_t(DEVICE_BYTES))
        self.stream = self.new_stream()

    def _call(self, name, *args):
        assert getattr(self.cuda, name)(*args) == 0, name

    def new_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream.value

    def block(self, stream: int) -> None:
        """What is queued on it from now on waits for unblock."""
        self._call("emu_stream_block", ctypes.c_void_p(stream))

    def unblock(self, stream: int) -> None:
        self._call("emu_stream_unblock", ctypes.c_void_p(stream))

    def array(self, at: int, size: int) -> "DeviceArray":
        return DeviceArray(self, self.memory.value + at, size)

    def fill(self, array: "DeviceArray", byte: int) -> None:
        """Queued on the stream, as a kernel of the engine."""
        self._call("emu_stream_fill", ctypes.c_void_p(self.stream),
                   ctypes.c_uint64(array.address), ctypes.c_size_t(array.size), byte)


    def queue_read(self, array: "DeviceArray"):
        """Queued on the stream, as a kernel that uses the memory; what it saw is there after
        sync()."""
        seen = ctypes.create_string_buffer(array.size)
        self._call("emu_stream_read", ctypes.c_void_p(self.stream), seen,
                   ctypes.c_uint64(array.address), ctypes.c_size_t(array.size))
        return seen

    def sync(self) -> None:
        self._call("emu_stream_sync", ctypes.c_void_p(self.stream))


class DeviceArray:
    def __init__(self, gpu: Gpu, address: int, size: int) -> None:
        self.gpu, self.address, self.size = gpu, address, size

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.address, False), "shape": (self.size // 2,), "typestr": "<f2",
                "version": 3, "strides": None, "stream": self.gpu.stream}

    def write(self, data: bytes) -> None:
        self.gpu._call("emu_write", ctypes.c_uint64(self.address), data,
                       ctypes.c_size_t(len(data)))

    def read(self) -> bytes:
        out = ctypes.create_string_buffer(self.size)
        self.gpu._call("emu_read", out, ctypes.c_uint64(self.address),
                       ctypes.c_size_t(self.size))
        return out.raw


class DeviceTensor:
    """What a connector sees of a torch tensor on a GPU: `tensor` says how it lies in `raw`, which
    begins at `address` of the device's memory."""

    def __init__(self, tensor, raw, address: int) -> None:
        self._tensor, self._address = tensor, address + tensor.data_ptr() - raw.data_ptr()
        self.device = type(tensor.device)("cuda:0")

    def __getattr__(self, name: str):
        """Shape, strides, dtype and the like."""
        return getattr(self._tensor, name)

    def data_ptr(self) -> int:
        return self._address
