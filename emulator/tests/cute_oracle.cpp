// Prints CuTe's own layouts, evaluated on the host, for cute_layouts.rs to compare with the emulator's formulas.
// One table a line: "name parameters : values". CuTe may write to stdout, so the tables go to the file argv[1].
#include <cute/tensor.hpp>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include <cstdint>
#include <cstdio>

using namespace cute;

static FILE* out;
alignas(1 << 18) static uint8_t shared_memory[1 << 18];

template <int B>
void swizzles() {
  std::fprintf(out, "swizzle %d :", B);
  for (uint32_t address = 0; address < 8192; address += 4) {
    std::fprintf(out, " %u", uint32_t(Swizzle<B, 4, 3>{}(address)));
  }
  std::fprintf(out, "\n");
}

// Every (thread, value) of an MMA operand as row + rows * column.
template <class Layout>
void fragment(char const* name, int parameter, Layout const& layout, int rows) {
  std::fprintf(out, "%s %d %d %d :", name, parameter, rows, int(size<1>(layout)));
  for (int thread = 0; thread < size<0>(layout); ++thread) {
    for (int value = 0; value < size<1>(layout); ++value) {
      std::fprintf(out, " %d", int(layout(thread, value)));
    }
  }
  std::fprintf(out, "\n");
}

template <class Op>
void warp_mma(int bits) {
  using Traits = MMA_Traits<Op>;
  fragment("mma_a", bits, typename Traits::ALayout{}, 16);
  fragment("mma_b", bits, typename Traits::BLayout{}, 8);
  fragment("mma_c", bits, typename Traits::CLayout{}, 16);
}

// Each K step of a tile in shared memory: the descriptor CuTe makes of it and where its elements lie.
template <class Type, GMMA::Major major, int MN, int K, class Atom, class Order>
void tile(int start, Atom atom, Order order) {
  auto layout = tile_to_shape(atom, Shape<Int<MN>, Int<K>>{}, order);
  auto whole = make_tensor(make_smem_ptr(reinterpret_cast<Type*>(shared_memory + start)), layout);
  constexpr int depth = 32 / sizeof(Type);
  for (int k = 0; k < K / depth; ++k) {
    auto step = local_tile(whole, Shape<Int<MN>, Int<depth>>{}, make_coord(0, k));
    GmmaDescriptor descriptor = GMMA::make_gmma_desc<major>(step);
    auto first = reinterpret_cast<uint8_t*>(raw_pointer_cast(step.data())) - shared_memory;
    std::fprintf(out, "tile %d %d %d %d %llu %d :", major == GMMA::Major::MN, int(sizeof(Type)), MN, depth,
                 static_cast<unsigned long long>(descriptor.desc_), int(first));
    for (int mn = 0; mn < MN; ++mn) {
      for (int i = 0; i < depth; ++i) {
        std::fprintf(out, " %d", int(reinterpret_cast<uint8_t*>(&step(mn, i)) - shared_memory));
      }
    }
    std::fprintf(out, "\n");
  }
}

// The tile's atoms one after the other along MN first, then along K first.
template <class Type, GMMA::Major major, int MN, int K, class Atom>
void both_orders(int start, Atom atom) {
  tile<Type, major, MN, K>(start, atom, Step<_1, _2>{});
  tile<Type, major, MN, K>(start, atom, Step<_2, _1>{});
}

template <class Type, GMMA::Major major, int MN, int K>
void all_swizzles(int start) {
  both_orders<Type, major, MN, K>(start, GMMA::Layout_INTER_Atom<Type, major>{});
  both_orders<Type, major, MN, K>(start, GMMA::Layout_SW32_Atom<Type, major>{});
  both_orders<Type, major, MN, K>(start, GMMA::Layout_SW64_Atom<Type, major>{});
  both_orders<Type, major, MN, K>(start, GMMA::Layout_SW128_Atom<Type, major>{});
}

template <class Type, GMMA::Major major>
void tiles() {
  // Two atoms of the widest swizzle along K, two or more along MN; not at the start of shared memory.
  all_swizzles<Type, major, 128, 256 / sizeof(Type)>(0x8400);
}

int main(int argc, char** argv) {
  out = argc > 1 ? std::fopen(argv[1], "w") : nullptr;
  if (!out) {
    std::fprintf(stderr, "usage: cute_oracle FILE\n");
    return 1;
  }
  swizzles<1>();
  swizzles<2>();
  swizzles<3>();

  fragment("wgmma_c", 8, GMMA::CLayout_64x8{}, 64);
  fragment("wgmma_c", 64, GMMA::CLayout_64x64{}, 64);
  fragment("wgmma_c", 128, GMMA::CLayout_64x128{}, 64);
  fragment("wgmma_c", 160, GMMA::CLayout_64xN<160>{}, 64);
  fragment("wgmma_c", 256, GMMA::CLayout_64x256{}, 64);
  fragment("wgmma_a", 32, GMMA::ALayout_64x8{}, 64);
  fragment("wgmma_a", 16, GMMA::ALayout_64x16{}, 64);
  fragment("wgmma_a", 8, GMMA::ALayout_64x32{}, 64);

  warp_mma<SM80_16x8x16_F32BF16BF16F32_TN>(16);
  warp_mma<SM80_16x8x8_F32F16F16F32_TN>(16);
  warp_mma<SM80_16x8x8_F32TF32TF32F32_TN>(32);
  warp_mma<SM80_16x8x4_F32TF32TF32F32_TN>(32);
  warp_mma<SM80_16x8x32_S32S8S8S32_TN>(8);
  warp_mma<SM80_16x8x16_S32S8S8S32_TN>(8);

  // These layouts count bits; one value a 16-bit element.
  auto matrices = [](int transposed, auto layout) {
    std::fprintf(out, "ldmatrix %d :", transposed);
    for (int lane = 0; lane < 32; ++lane) {
      for (int element = 0; element < 8; ++element) {
        std::fprintf(out, " %d", int(layout(lane, element * 16)) / 16);
      }
    }
    std::fprintf(out, "\n");
  };
  matrices(0, typename Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{});
  matrices(1, typename Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{});

  tiles<cutlass::bfloat16_t, GMMA::Major::K>();
  tiles<cutlass::float_e4m3_t, GMMA::Major::K>();
  tiles<cutlass::bfloat16_t, GMMA::Major::MN>();
  std::fclose(out);
}
