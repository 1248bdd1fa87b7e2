// Our own exp, log, sin, cos and half conversions against tables (computed with 200 bits) and
// against the machine's long double. That they are the same everywhere is the job of the digest.
#include "engine/backend/exact_math.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cfloat>
#include <limits>

#include "engine/backend/backend.h"
#include "engine/backend/half.h"
#include "engine/base/hash.h"
#include "tests/engine/backend/fixtures.h"

using namespace holdfast;
using testing::Random;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct FloatPoint {
  float x;
  double y;
};
constexpr FloatPoint kExpF[] = {
    {0x1.0p+0f, 0x1.5bf0a8b145769p+1},       {-0x1.0p+0f, 0x1.78b56362cef38p-2},
    {0x1.0p-1f, 0x1.a61298e1e069cp+0},       {0x1.62e430p-2f, 0x1.6a09e66dbc8d9p+0},
    {-0x1.62e430p-2f, 0x1.6a09e6622aec0p-1}, {0x1.48p+3f, 0x1.b9ea2aed2a0f1p+14},
    {-0x1.48p+3f, 0x1.2899a7a835446p-15},    {0x1.5b999ap+6f, 0x1.4ae3736de8ebdp+125},
    {-0x1.5b999ap+6f, 0x1.8c1f127e1e6cfp-126}, {0x1.6p+6f, 0x1.f1056dc7bf22dp+126},
    {0x1.5798eep-27f, 0x1.0000002af31dcp+0}, {-0x1.926666p+5f, 0x1.5979c94bba283p-73},
};

struct Point {
  double x, y;
};
constexpr Point kExp[] = {
    {0x1.0p+0, 0x1.5bf0a8b145769p+1},
    {-0x1.0p+0, 0x1.78b56362cef38p-2},
    {0x1.999999999999ap-4, 0x1.1aec7b35a00d4p+0},
    {-0x1.62e33eff19503p-2, 0x1.6a0a3b975afaep-1},
    {0x1.42p+4, 0x1.0625e2f548a3ap+29},
    {-0x1.42p+4, 0x1.f3fe0cb68b20cp-30},
    {0x1.5e4p+9, 0x1.8625c7d4f56c2p+1010},
    {-0x1.5e4p+9, 0x1.4ff475c68ca02p-1011},
    {0x1.6273333333333p+9, 0x1.a796454e90694p+1022},
    {0x1.70ef54646d497p-57, 0x1.0p+0},
};
constexpr Point kLog[] = {
    {0x1.0p+1, 0x1.62e42fefa39efp-1},
    {0x1.4p+3, 0x1.26bb1bbb55516p+1},
    {0x1.388p+13, 0x1.26bb1bbb55516p+3},
    {0x1.e848p+19, 0x1.ba18a998fffa0p+3},
    {0x1.999999999999ap-4, -0x1.26bb1bbb55515p+1},
    {0x1.000001ad7f29bp+0, 0x1.ad7f2847b6492p-24},
    {0x1.ffffffaa19c47p-1, -0x1.5798ee5cd2b2ap-27},
    {0x1.6a09e3ae90a1ap-1, -0x1.62e437a425df8p-2},
    {0x1.6a09e688b59bbp+0, 0x1.62e4304c4a71fp-2},
    {0x1.7e43c8800759cp+996, 0x1.5963447f87fb5p+9},
    {0x1.56e1fc2f8f359p-997, -0x1.5963447f87fb5p+9},
    {0x0.0000000000001p-1022, -0x1.74385446d71c3p+9},
};

struct TurnPoint {
  double x, sin, cos;
};
constexpr TurnPoint kTurn[] = {
    {0x1.999999999999ap-4, 0x1.98eaecb8bcb2cp-4, 0x1.fd712f9a817c1p-1},
    {0x1.0p+0, 0x1.aed548f090ceep-1, 0x1.14a280fb5068cp-1},
    {0x1.921fb54442d18p+0, 0x1.0p+0, 0x1.1a62633145c07p-54},
    {0x1.921fb54442d18p+1, 0x1.1a62633145c07p-53, -0x1.0p+0},
    {-0x1.4p+1, -0x1.326af0dcfcab1p-1, -0x1.9a2f7ef858b7dp-1},
    {0x1.4p+3, -0x1.1689ef5f34f52p-1, -0x1.ad9ac890c6b1fp-1},
    {0x1.f44p+9, 0x1.fd948c50a7a0dp-1, 0x1.8dbff75eb664fp-4},
    {0x1.fffcp+14, 0x1.80036fa7b61fap-3, 0x1.f6eb38d7d11b4p-1},
    {0x1.e240c9fbe76c9p+16, -0x1.ff50e60ab53f9p-1, 0x1.a74d27c41b22ap-5},
    {0x1.ffffep+19, -0x1.3b32b2ca06654p-1, 0x1.937a45bd49642p-1},
    {0x1.312d268p+23, 0x1.133d66a5a4efbp-5, -0x1.ffb5ff6899a10p-1},
    {0x1.fffffff8p+29, -0x1.fdb6a55d0ac16p-1, -0x1.82ac4b53cde6bp-4},
};

// The distance of `got` from `want` in units of the last place of a T near `want`.
template <typename T>
double Ulps(T got, long double want) {
  int exponent;
  std::frexp(static_cast<T>(want), &exponent);
  const long double unit = std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
  return static_cast<double>(std::fabs(static_cast<long double>(got) - want) / unit);
}

}  // namespace

TEST_CASE("exp in fp32: within 2 ulp, with exact ends") {
  for (const FloatPoint& p : kExpF) CHECK(Ulps(ExpF(p.x), static_cast<long double>(p.y)) <= 1.0);
  double worst = 0;
  for (uint32_t bits = 0; bits < std::bit_cast<uint32_t>(88.0f); bits += 4099) {
    const float x = std::bit_cast<float>(bits);
    worst = std::max(worst, Ulps(ExpF(x), std::exp(static_cast<long double>(x))));
    if (x <= 87.0f) worst = std::max(worst, Ulps(ExpF(-x), std::exp(static_cast<long double>(-x))));
  }
  MESSAGE("worst error of ExpF: ", worst, " ulp");
  CHECK(worst <= 2.0);

  CHECK(ExpF(0.0f) == 1.0f);
  CHECK(ExpF(-0.0f) == 1.0f);
  CHECK(ExpF(-87.0f) > 0.0f);
  for (float x : {-87.00001f, -1e30f, -kInf}) CHECK(std::bit_cast<uint32_t>(ExpF(x)) == 0);
  for (float x : {88.00001f, 1e30f, kInf}) CHECK(ExpF(x) == ExpF(88.0f));
  CHECK(std::isnan(ExpF(NAN)));
}

TEST_CASE("exp and log in fp64: within 2 ulp") {
  for (const Point& p : kExp) CHECK(Ulps(Exp(p.x), static_cast<long double>(p.y)) <= 2.0);
  for (const Point& p : kLog) CHECK(Ulps(Log(p.x), static_cast<long double>(p.y)) <= 2.0);
  Random random(1);
  double worst_exp = 0, worst_log = 0;
  for (int i = 0; i < 200000; ++i) {
    const double x = static_cast<double>(random.Below(1 << 30) - (1 << 29)) * 0x1.0p-29 *
                     (i % 2 == 0 ? 700.0 : 2.0);
    worst_exp = std::max(worst_exp, Ulps(Exp(x), std::exp(static_cast<long double>(x))));
    const double y = i % 2 == 0 ? std::bit_cast<double>(random.Next() >> 1)
                                : 0.5 + static_cast<double>(random.Below(1 << 30)) * 0x1.0p-29;
    if (!std::isfinite(y) || y < DBL_MIN || y == 1.0) continue;
    worst_log = std::max(worst_log, Ulps(Log(y), std::log(static_cast<long double>(y))));
  }
  MESSAGE("worst error of Exp: ", worst_exp, " ulp, of Log: ", worst_log, " ulp");
  CHECK(worst_exp <= 2.0);
  CHECK(worst_log <= 2.0);

  CHECK(Exp(0.0) == 1.0);
  CHECK(Exp(-708.5) == 0.0);
  CHECK(Exp(-HUGE_VAL) == 0.0);
  CHECK(Exp(HUGE_VAL) == Exp(709.0));
  CHECK(std::isnan(Exp(NAN)));
  CHECK(Log(1.0) == 0.0);
  CHECK(Log(0.0) == -HUGE_VAL);
  CHECK(Log(HUGE_VAL) == HUGE_VAL);
  CHECK(std::isnan(Log(-1.0)));
  CHECK(std::isnan(Log(NAN)));
}

TEST_CASE("sin and cos: within 2^-52 of the truth up to 2^30") {
  const auto error = [](double x) {
    const SinCosResult r = SinCos(x);
    const long double s = std::sin(static_cast<long double>(x));
    const long double c = std::cos(static_cast<long double>(x));
    return static_cast<double>(std::max(std::fabs(r.sin - s), std::fabs(r.cos - c)));
  };
  for (const TurnPoint& p : kTurn) {
    CHECK(std::fabs(SinCos(p.x).sin - p.sin) <= 0x1.0p-52);
    CHECK(std::fabs(SinCos(p.x).cos - p.cos) <= 0x1.0p-52);
  }
  Random random(2);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    const double scale = std::ldexp(1.0, static_cast<int>(random.Below(31)));
    worst = std::max(worst, error(static_cast<double>(random.Below(1 << 30)) * 0x1.0p-30 * scale));
  }
  MESSAGE("worst error of SinCos: ", worst / 0x1.0p-53, " * 2^-53");
  CHECK(worst <= 0x1.0p-52);
  CHECK(SinCos(0.0).sin == 0.0);
  CHECK(SinCos(0.0).cos == 1.0);
}

// Any other coefficient, order or rounding shows here: millions of results, not only those that the
// operations of the digest happen to meet.
TEST_CASE("the bits of NUMERICS version 1") {
  std::vector<float> exp_f;
  // Dense where the last coefficients can move a result at all.
  for (uint32_t bits = std::bit_cast<uint32_t>(0.125f); bits < std::bit_cast<uint32_t>(88.0f);
       bits += 11) {
    exp_f.push_back(ExpF(std::bit_cast<float>(bits)));
    exp_f.push_back(ExpF(-std::bit_cast<float>(bits)));
  }
  CHECK(Sha256(exp_f.data(), exp_f.size() * sizeof(float)).Hex() ==
        "a0885e9eb40dcd24c1c999ca6a54eb7cc329e621843e71b76ce6557d23a83961");
  std::vector<double> results;
  Random random(3);
  for (int i = 0; i < 300000; ++i) {
    const double x = static_cast<double>(random.Below(int64_t{1} << 40)) * 0x1.0p-20;  // below 2^20
    const SinCosResult turn = SinCos(x);
    results.insert(results.end(), {Exp(x * 0x1.0p-11), Exp(-x * 0x1.0p-11), Log(x + 0x1.0p-30),
                                   Log(1.0 + x * 0x1.0p-20), turn.sin, turn.cos});
  }
  CHECK(Sha256(results.data(), results.size() * sizeof(double)).Hex() ==
        "71d637d5f366689cfbfb1f08f68638b2982aff9b0a1b4c0a0948115213e20605");
}

TEST_CASE("half: every value there and back, ties to even, ends") {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = HalfToFloat(static_cast<uint16_t>(h));
    if ((h & 0x7fff) > 0x7c00) {
      REQUIRE(std::isnan(f));
      REQUIRE((FloatToHalf(f) & 0x7fff) > 0x7c00);
      continue;
    }
    REQUIRE(FloatToHalf(f) == h);
    if ((h & 0x7fff) >= 0x7bff) continue;
    // Between h and its neighbour away from zero: the middle goes to the even one.
    const float next = HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = (f + next) / 2;
    REQUIRE(FloatToHalf(middle) == (h % 2 == 0 ? h : h + 1));
    REQUIRE(FloatToHalf(std::nextafter(middle, 0.0f)) == h);
    REQUIRE(FloatToHalf(std::nextafter(middle, next * 2)) == h + 1);
  }
  CHECK(HalfToFloat(0x3555) == 0x1.554p-2f);
  CHECK(HalfToFloat(0x0001) == 0x1.0p-24f);
  CHECK(HalfToFloat(0x7bff) == 65504.0f);
  CHECK(FloatToHalf(65519.996f) == 0x7bff);
  CHECK(FloatToHalf(65520.0f) == 0x7c00);
  CHECK(FloatToHalf(-1e30f) == 0xfc00);
  CHECK(FloatToHalf(0x1.0p-25f) == 0);
  CHECK(FloatToHalf(0x1.000002p-25f) == 1);
  CHECK(FloatToHalf(-0x1.0p-149f) == 0x8000);
}

TEST_CASE("rope table: cos and sin of position times frequency, fixed once written") {
  std::vector<double> scale(32, 1.0);
  scale[5] = 0.125;
  RopeTable table(64, 10000.0, scale);
  CHECK(table.dim() == 64);
  CHECK(table.positions() == 0);
  table.Reserve(100);
  const std::vector<float> before(table.Row(0), table.Row(0) + 100 * 64);
  table.Reserve(50);
  CHECK(table.positions() == 100);
  table.Reserve(5000);
  CHECK(table.positions() == 5000);
  CHECK(std::equal(before.begin(), before.end(), table.Row(0)));
  for (int64_t p : {0, 1, 99, 4999}) {
    for (int i = 0; i < 32; ++i) {
      const long double angle =
          static_cast<long double>(p) * std::pow(10000.0L, -2.0L * i / 64) * scale[i];
      CHECK(std::fabs(table.Row(p)[i] - std::cos(angle)) <= 0x1.1p-25);
      CHECK(std::fabs(table.Row(p)[32 + i] - std::sin(angle)) <= 0x1.1p-25);
    }
  }
}
