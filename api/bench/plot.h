// Charts of straight axes from zero, as one SVG document. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace holdfast {

struct ChartSeries {
  enum class Style : uint8_t { kPoints, kLine, kDashes };
  std::string label;  // as the legend says it
  Style style = Style::kPoints;
  std::vector<std::pair<double, double>> points;
};

struct Chart {
  std::string title;
  std::string x_label, y_label;  // with their units
  std::vector<ChartSeries> series;
};

// The charts below each other. Points that are not finite are left out.
std::string PlotSvg(const std::vector<Chart>& charts);

// The distance of an axis's marks: 1, 2 or 5 times a power of ten, at most `marks` of them up to
// `largest`.
double AxisStep(double largest, int marks);

}  // namespace holdfast
