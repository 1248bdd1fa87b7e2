#include "api/bench/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace holdfast {
namespace {

constexpr double kWidth = 960, kHeight = 400;             // of a chart
constexpr double kLeft = 76, kTop = 44, kBottom = 56;     // around its plot
constexpr double kPlotWidth = 560;                        // the legend has the rest
constexpr double kPlotHeight = kHeight - kTop - kBottom;
constexpr int kMarks = 8;
// Told apart by those who don't see red or green, too.
constexpr const char* kColours[] = {"#0072b2", "#555555", "#d55e00", "#009e73", "#cc79a7"};

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string Number(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", v);
  return text;
}

std::string Text(double x, double y, const std::string& attributes, const std::string& text) {
  return "<text x=\"" + Number(x) + "\" y=\"" + Number(y) + "\" " + attributes + ">" +
         Escaped(text) + "</text>\n";
}

std::string Line(double x1, double y1, double x2, double y2, const std::string& attributes) {
  return "<line x1=\"" + Number(x1) + "\" y1=\"" + Number(y1) + "\" x2=\"" + Number(x2) +
         "\" y2=\"" + Number(y2) + "\" " + attributes + "/>\n";
}

bool Drawn(const std::pair<double, double>& p) {
  return std::isfinite(p.first) && std::isfinite(p.second) && p.first >= 0 && p.second >= 0;
}

// One chart whose upper edge is at `top`.
class Drawing {
 public:
  Drawing(const Chart& chart, double top) : chart_(chart), top_(top + kTop) {
    for (const ChartSeries& s : chart.series) {
      for (const auto& p : s.points) {
        if (!Drawn(p)) continue;
        x_max_ = std::max(x_max_, p.first);
        y_max_ = std::max(y_max_, p.second);
      }
    }
    x_step_ = std::max(1.0, AxisStep(x_max_, kMarks));  // x counts things
    y_step_ = AxisStep(y_max_, kMarks);
    x_max_ = std::max(1.0, std::ceil(x_max_ / x_step_ - 1e-9)) * x_step_;
    y_max_ = std::max(1.0, std::ceil(y_max_ / y_step_ - 1e-9)) * y_step_;
  }

  std::string Svg() const {
    std::string out = Text(kLeft, top_ - 18, "class=\"title\"", chart_.title) + Axes();
    for (size_t i = 0; i < chart_.series.size(); ++i) out += Series(i) + Legend(i);
    return out;
  }

 private:
  double X(double x) const { return kLeft + x / x_max_ * kPlotWidth; }
  double Y(double y) const { return top_ + kPlotHeight * (1 - y / y_max_); }

  std::string Axes() const {
    const double bottom = top_ + kPlotHeight, right = kLeft + kPlotWidth;
    std::string out;
    for (int i = 0; i * y_step_ <= y_max_ * (1 + 1e-9); ++i) {
      const double y = Y(i * y_step_);
      out += Line(kLeft, y, right, y, i == 0 ? "class=\"axis\"" : "class=\"grid\"");
      out += Text(kLeft - 8, y + 4, "text-anchor=\"end\"", Number(i * y_step_));
    }
    for (int i = 0; i * x_step_ <= x_max_ * (1 + 1e-9); ++i) {
      const double x = X(i * x_step_);
      out += Line(x, bottom, x, bottom + 5, "class=\"axis\"");
      out += Text(x, bottom + 20, "text-anchor=\"middle\"", Number(i * x_step_));
    }
    out += Line(kLeft, top_, kLeft, bottom, "class=\"axis\"");
    out += Text(kLeft + kPlotWidth / 2, bottom + 42, "text-anchor=\"middle\"", chart_.x_label);
    const double x = 20, y = top_ + kPlotHeight / 2;
    out += Text(x, y, "text-anchor=\"middle\" transform=\"rotate(-90 " + Number(x) + " " +
                          Number(y) + ")\"", chart_.y_label);
    return out;
  }

  static std::string Stroke(ChartSeries::Style style, const std::string& colour) {
    return "fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"1.8\"" +
           (style == ChartSeries::Style::kDashes ? " stroke-dasharray=\"6 4\"" : "");
  }

  static std::string Dot(double x, double y, const std::string& colour) {
    return "<circle cx=\"" + Number(x) + "\" cy=\"" + Number(y) + "\" r=\"4\" fill=\"" + colour +
           "\"/>\n";
  }

  std::string Series(size_t i) const {
    const ChartSeries& s = chart_.series[i];
    const std::string colour = Colour(i);
    std::string dots, path;
    for (const auto& p : s.points) {
      if (!Drawn(p)) continue;
      dots += Dot(X(p.first), Y(p.second), colour);
      path += Number(X(p.first)) + "," + Number(Y(p.second)) + " ";
    }
    if (s.style == ChartSeries::Style::kPoints) return dots;
    return "<polyline points=\"" + path + "\" " + Stroke(s.style, colour) + "/>\n";
  }

  std::string Legend(size_t i) const {
    const ChartSeries& s = chart_.series[i];
    const double x = kLeft + kPlotWidth + 24, y = top_ + 12 + 24 * static_cast<double>(i);
    const std::string mark = s.style == ChartSeries::Style::kPoints
                                 ? Dot(x + 14, y, Colour(i))
                                 : Line(x, y, x + 28, y, Stroke(s.style, Colour(i)));
    return mark + Text(x + 36, y + 4, "class=\"legend\"", s.label);
  }

  static std::string Colour(size_t i) { return kColours[i % std::size(kColours)]; }

  const Chart& chart_;
  double top_;
  double x_max_ = 0, y_max_ = 0, x_step_ = 1, y_step_ = 1;
};

}  // namespace

double AxisStep(double largest, int marks) {
  if (!(largest > 0)) return 1;
  double step = std::pow(10, std::floor(std::log10(largest / marks)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (largest / (step * factor) <= marks) return step * factor;
  }
  return step * 10;
}

std::string PlotSvg(const std::vector<Chart>& charts) {
  const double height = kHeight * static_cast<double>(charts.size());
  const std::string size = Number(kWidth) + "\" height=\"" + Number(height);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + size +
                    "\" viewBox=\"0 0 " + Number(kWidth) + " " + Number(height) +
                    "\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" "
                    "fill=\"#222\">\n<style>.title { font-size: 15px; font-weight: bold }"
                    " .grid { stroke: #e4e4e4 } .axis { stroke: #222 }</style>\n"
                    "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  for (size_t i = 0; i < charts.size(); ++i) {
    out += Drawing(charts[i], kHeight * static_cast<double>(i)).Svg();
  }
  return out + "</svg>\n";
}

}  // namespace holdfast
