"""How fast are the instructions that the kernels are made of? Multiply-adds a clock of one multiprocessor.

Decides what can bind: whether the sparse product from registers runs at twice the dense rate, whether it still does
while the copy engine fills shared memory, and what ``mma.sp`` reaches beside ``wgmma`` on Hopper. The sources are
generated, since a ``wgmma`` names up to 64 accumulators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ITERATIONS = 512
SHARED_BYTES = 160 * 1024
_COPY_BYTES = 16384
_PRODUCTS = 4  # of a warpgroup before it waits; a kernel's tile has 4 to 8
_WARP_PRODUCTS = 16  # independent ones of a warp


@dataclass(frozen=True)
class Rate:
    """One measurement.

    Args:
        name: what is multiplied.
        statement: CUDA C++ of one product; ``{k}`` is its number.
        products: in one iteration.
        macs: multiply-adds of one product as dense arithmetic counts them, of a warpgroup or of four warps.
        groups: warpgroups that compute.
        copying: whether the copy engine fills other shared memory meanwhile.
        asynchronous: whether it is ``wgmma``, which is fenced, committed and waited for.
    """

    name: str
    statement: str
    products: int
    macs: int
    groups: int
    copying: bool
    asynchronous: bool

    @property
    def threads(self) -> int:
        """Threads of a block; its last warp copies."""
        return 128 * self.groups + 32

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a block in all iterations."""
        return ITERATIONS * self.products * self.macs * self.groups

    def source(self) -> str:
        """CUDA C++ with one kernel, ``rate(cycles, sink, source, copied)``."""
        body = "\n".join(self.statement.format(k=k) for k in range(self.products))
        if self.asynchronous:
            body = f"fence(d);\n{body}\ncommit_and_wait(d);"
        return _SOURCE.format(
            threads=self.threads, computing=128 * self.groups, iterations=ITERATIONS, body=body,
            copy=_COPY.format(bytes=_COPY_BYTES) if self.copying else "",
        )  # fmt: skip


def rates() -> Iterator[Rate]:
    """What is measured, in order."""
    shapes = {
        "wgmma n128, A in registers": (_wgmma(128, sparse=False), 64 * 128 * 16),
        "wgmma.sp n64, A in registers": (_wgmma(64, sparse=True), 64 * 64 * 32),
        "wgmma.sp n128, A in registers": (_wgmma(128, sparse=True), 64 * 128 * 32),
    }
    for name, (statement, macs) in shapes.items():
        for groups in (1, 2, 3):
            for copying in (False, True):
                yield Rate(name, statement, _PRODUCTS, macs, groups, copying, asynchronous=True)
    for name, (statement, macs) in {
        "mma m16n8k16": (_MMA, 4 * 16 * 8 * 16),
        "mma.sp m16n8k32": (_MMA_SP, 4 * 16 * 8 * 32),
        "mma.sp m16n8k16 tf32": (_MMA_SP.replace("m16n8k32", "m16n8k16").replace("bf16", "tf32"), 4 * 16 * 8 * 16),
    }.items():
        for groups in (1, 2, 3):
            yield Rate(name, statement, _WARP_PRODUCTS, macs, groups, copying=False, asynchronous=False)


def _wgmma(n: int, sparse: bool) -> str:
    """One product of a warpgroup: 64 rows of A from registers, B of ``n`` columns from shared memory, transposed."""
    count = n // 2
    accumulators = ", ".join(f"%{i}" for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    metadata = f", %{count + 5}, 0" if sparse else ""
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    k = 32 if sparse else 16
    return (
        f'asm volatile("wgmma.mma_async{".sp" if sparse else ""}.sync.aligned.m64n{n}k{k}.f32.bf16.bf16 '
        f'{{{{{accumulators}}}}}, {{{{{a}}}}}, %{count + 4}{metadata}, 1, 1, 1, 1;" : {outputs} : '
        '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(matrix(shared + {k} * '
        + str(k * 128)
        + "))"
        + (', "r"(metadata)' if sparse else "")
        + ");"
    )


_MMA = (
    'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%0,%1,%2,%3}},{{%4,%5,%6,%7}},{{%8,%9}},'
    '{{%0,%1,%2,%3}};" : "+f"(d[4*{k}]), "+f"(d[4*{k}+1]), "+f"(d[4*{k}+2]), "+f"(d[4*{k}+3]) : '
    '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[0]), "r"(a[1]));'
)
_MMA_SP = (
    'asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {{%0,%1,%2,%3}},'
    '{{%4,%5,%6,%7}},{{%8,%9,%10,%11}},{{%0,%1,%2,%3}},%12,0x0;" : "+f"(d[4*{k}]), "+f"(d[4*{k}+1]), '
    '"+f"(d[4*{k}+2]), "+f"(d[4*{k}+3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[0]), "r"(a[1]), '
    '"r"(a[2]), "r"(a[3]), "r"(metadata));'
)

_COPY = """
    if (threadIdx.x == COMPUTING) {{
      long long bytes = 0;
      for (unsigned phase = 0; !stop; phase ^= 1, bytes += {bytes}) {{
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], {bytes};" :: "r"(barrier) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], {bytes}, [%2];"
                     :: "r"(shared + 131072), "l"(source + (bytes & 1048575)), "r"(barrier) : "memory");
        asm volatile("{{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; "
                     "@!done bra again; }}" :: "r"(barrier), "r"(phase) : "memory");
      }}
      copied[blockIdx.x] = bytes;
    }}"""

_SOURCE = """
__device__ __forceinline__ unsigned long long matrix(unsigned address) {{  // descriptor: swizzled by 128 bytes
  return ((address & 0x3ffff) >> 4) | (16384ull >> 4) << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}}
__device__ __forceinline__ void keep(float (&d)[64]) {{
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}}
#if __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void fence(float (&d)[64]) {{
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  keep(d);
}}
__device__ __forceinline__ void commit_and_wait(float (&d)[64]) {{
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  keep(d);
}}
#endif
constexpr int COMPUTING = {computing};
extern "C" __global__ void __launch_bounds__({threads}, 1)
rate(long long* cycles, float* sink, const char* source, long long* copied) {{
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) unsigned long long barrier_word;
  __shared__ volatile int stop;
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  const unsigned barrier = static_cast<unsigned>(__cvta_generic_to_shared(&barrier_word));
  for (int i = threadIdx.x; i < 40960; i += blockDim.x) {{  // bfloat16 between 1/2 and 1
    unsigned x = (i + 1) * 2654435769u;
    reinterpret_cast<unsigned*>(memory)[i] = ((x ^ x >> 15) & 0x007f007fu) | 0x3f003f00u;
  }}
  if (threadIdx.x == 0) {{
    stop = 0;
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(barrier));
  }}
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
  if (threadIdx.x >= COMPUTING) {{{copy}
    return;
  }}
  float d[64];
  unsigned a[4];
  for (int i = 0; i < 64; ++i) d[i] = 0.0f;
  for (int i = 0; i < 4; ++i) a[i] = ((threadIdx.x * 4 + i) * 2654435769u & 0x007f007fu) | 0x3f003f00u;
  const unsigned metadata = 0x44444444u;  // the first two of each four
  asm volatile("bar.sync 1, {computing};" ::: "memory");
  const long long start = clock64();
#pragma unroll 1
  for (int iteration = 0; iteration < {iterations}; ++iteration) {{
    {body}
  }}
  asm volatile("bar.sync 1, {computing};" ::: "memory");
  const long long end = clock64();
  float sum = metadata;
  for (int i = 0; i < 64; ++i) sum += d[i];
  sink[blockIdx.x * COMPUTING + threadIdx.x] = sum;
  if (threadIdx.x == 0) {{
    cycles[blockIdx.x] = end - start;
    stop = 1;
  }}
}}
"""
