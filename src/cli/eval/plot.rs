//! The frontier's plot: divergence and perplexity against file size, as SVG for light and dark pages.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{Error, Result};

/// Points that a line joins.
pub struct Series {
    pub name: String,
    pub marks: Vec<Mark>,
}

/// A file.
pub struct Mark {
    /// Written beside it.
    pub name: String,
    pub megabytes: f64,
    pub kl: f64,
    pub perplexity: f64,
}

/// Pixels: tall, so that on a phone's width everything stays readable.
const SIZE: (u32, u32) = (760, 1000);
const FONT: &str = "sans-serif";

struct Theme {
    name: &'static str,
    page: RGBColor,
    ink: RGBColor,
    grid: RGBColor,
    lines: [RGBColor; 4],
}

const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        page: RGBColor(255, 255, 255),
        ink: RGBColor(32, 36, 44),
        grid: RGBColor(222, 226, 232),
        lines: [RGBColor(0, 98, 204), RGBColor(196, 80, 0), RGBColor(30, 130, 76), RGBColor(128, 60, 160)],
    },
    Theme {
        name: "dark",
        page: RGBColor(13, 17, 23),
        ink: RGBColor(225, 230, 238),
        grid: RGBColor(48, 54, 64),
        lines: [
            RGBColor(88, 166, 255),
            RGBColor(255, 158, 88),
            RGBColor(90, 200, 130),
            RGBColor(200, 140, 240),
        ],
    },
];

/// Draws `frontier-light.svg` and `frontier-dark.svg` of the model `name`, which has `bytes` unquantized.
pub fn draw(dir: &Path, series: &[Series], (bytes, name): (u64, &str)) -> Result<Vec<PathBuf>> {
    if series.is_empty() {
        return Err(Error::invalid("the frontier", "there is no point to draw"));
    }
    let title = format!("{name}, {:.1} MB unquantized", bytes as f64 / 1e6);
    let mut paths = vec![];
    for theme in &THEMES {
        let path = dir.join(format!("frontier-{}.svg", theme.name));
        panels(SVGBackend::new(&path, SIZE), theme, &title, series)
            .map_err(|e| Error::invalid(path.display().to_string(), e))?;
        paths.push(path);
    }
    Ok(paths)
}

fn panels<B: DrawingBackend>(
    backend: B,
    theme: &Theme,
    title: &str,
    series: &[Series],
) -> Result<(), String> {
    let root = backend.into_drawing_area();
    root.fill(&theme.page).map_err(|e| e.to_string())?;
    let title = root
        .margin(14, 0, 0, 0)
        .titled(title, (FONT, 26).into_font().color(&theme.ink))
        .map_err(|e| e.to_string())?;
    let (upper, lower) = title.split_vertically(SIZE.1 / 2 - 25);
    panel(&upper, theme, series, "mean KL divergence (nats)", |mark| mark.kl, true)?;
    panel(&lower, theme, series, "perplexity", |mark| mark.perplexity, false)?;
    root.present().map_err(|e| e.to_string())
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    theme: &Theme,
    series: &[Series],
    what: &str,
    value: impl Fn(&Mark) -> f64,
    with_legend: bool,
) -> Result<(), String> {
    let marks = || series.iter().flat_map(|series| &series.marks);
    let (low, high) = range(marks().map(&value));
    let (left, right) = range(marks().map(|mark| mark.megabytes));
    let margin = 0.04 * (right - left).max(1.0);
    let space = (high / low).powf(0.08).max(1.002);
    let heights = (low / space..high * space).log_scale().with_key_points(ticks(low / space, high * space));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(56)
        .y_label_area_size(92)
        .build_cartesian_2d(left - margin..right + 2.5 * margin, heights)
        .map_err(|e| e.to_string())?;
    let label = |size: u32| (FONT, size).into_font().color(&theme.ink);
    chart
        .configure_mesh()
        .x_desc("file, MB")
        .y_desc(what)
        .axis_desc_style(label(20))
        .label_style(label(18))
        .axis_style(theme.ink)
        .bold_line_style(theme.grid)
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|y| if *y < 1.0 { format!("{y:.4}") } else { format!("{y:.1}") })
        .draw()
        .map_err(|e| e.to_string())?;
    for (series, color) in series.iter().zip(theme.lines.iter().cycle()) {
        let points: Vec<_> = series.marks.iter().map(|mark| (mark.megabytes, value(mark))).collect();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(3)).point_size(5);
        let legend = chart.draw_series(line).map_err(|e| e.to_string())?;
        if with_legend {
            let color = *color;
            legend
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], color.stroke_width(3)));
        }
        // Once is enough.
        let names = series.marks.iter().zip(&points).filter(|(mark, _)| with_legend && !mark.name.is_empty());
        let names = names.map(|(mark, &at)| {
            EmptyElement::at(at) + Text::new(mark.name.clone(), (9, -16), label(16).color(color))
        });
        chart.draw_series(names).map_err(|e| e.to_string())?;
    }
    if with_legend {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(label(20))
            .background_style(theme.page)
            .border_style(theme.grid)
            .legend_area_size(34)
            .draw()
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Round numbers between two: 1, 2 and 5 times powers of ten, or where that is too few, even steps.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let coarse = decades.flat_map(|n| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(n)));
    let coarse: Vec<f64> = coarse.filter(|v| (low..=high).contains(v)).collect();
    if coarse.len() > 3 {
        return coarse;
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high).collect()
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let text =
            |low, high| ticks(low, high).iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ");
        assert_eq!(text(0.0011, 0.09), "0.0020 0.0050 0.0100 0.0200 0.0500");
        assert_eq!(text(38.0, 40.3), "38.0000 38.5000 39.0000 39.5000 40.0000");
    }
}
