//! One chart: axes, lines with marks, and the legend, as inline SVG and HTML.
//!
//! Owns: the drawing, the ten looks of a line, ticks. Does not own: what the lines mean (`curves`).
//!
//! The one idea a newcomer lacks: the SVG names each look by its colour, and the page's style sheet answers to that name
//! with the colour for light or dark and with the dash pattern. So one drawing serves screen, night and paper.

use super::text::{escape, latency};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::ComposedElement;
use plotters::prelude::{
    ChartBuilder, Color, EmptyElement, IntoDrawingArea, IntoFont, LineSeries, PathElement, Polygon, RGBColor,
    SVGBackend, ShapeStyle,
};
use plotters::style::IntoTextStyle;
use std::error::Error;
use std::fmt::Write;
use std::ops::Range;

/// How a line looks: its colour on white (its name in the SVG too), on black, and its dashes.
struct Look(RGBColor, &'static str, &'static str);

/// The looks, after Okabe and Ito's and Tol's palettes, darkened to at least 3:1 on white; dashes differ where hues are near.
const LOOKS: [Look; LOOKS_COUNT] = [
    Look(RGBColor(0x00, 0x72, 0xb2), "#56b4e9", "none"),
    Look(RGBColor(0xd5, 0x5e, 0x00), "#ff8f3f", "22 8"),
    Look(RGBColor(0x00, 0x80, 0x5c), "#2fc79a", "4 6"),
    Look(RGBColor(0xb4, 0x45, 0x7f), "#e69fc6", "22 6 4 6"),
    Look(RGBColor(0x55, 0x55, 0x56), "#c4c4c6", "none"),
    Look(RGBColor(0x3a, 0x8f, 0xc9), "#a3d8f7", "10 6"),
    Look(RGBColor(0xa8, 0x75, 0x00), "#f0c04a", "none"),
    Look(RGBColor(0x5b, 0x3a, 0x9e), "#b39ddb", "30 8"),
    Look(RGBColor(0x7a, 0x1f, 0x3d), "#e57390", "14 6 4 6 4 6"),
    Look(RGBColor(0x6f, 0x76, 0x00), "#c9cf5a", "6 10"),
];

/// How many lines can be told apart.
pub const LOOKS_COUNT: usize = 10;

/// The names of the colours that are not a line's: the style sheet has what they look like.
const INK: RGBColor = RGBColor(0x33, 0x33, 0x34);
const GRID: RGBColor = RGBColor(0xd0, 0xd0, 0xd1);
const GRID_LIGHT: RGBColor = RGBColor(0xea, 0xea, 0xeb);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xfe);
const REFERENCE: RGBColor = RGBColor(0x99, 0x99, 0x9a);

/// Outlines of the marks, in drawing units around their point. The second five looks have them hollow.
const MARKS: [&[(i32, i32)]; 5] = [
    &[(-4, -9), (4, -9), (9, -4), (9, 4), (4, 9), (-4, 9), (-9, 4), (-9, -4)],
    &[(0, -11), (10, 8), (-10, 8)],
    &[(-8, -8), (8, -8), (8, 8), (-8, 8)],
    &[(0, -11), (11, 0), (0, 11), (-11, 0)],
    &[(0, 11), (10, -8), (-10, -8)],
];

/// Corners of a filled shape, in drawing units around its point.
type Outline = Vec<(i32, i32)>;

/// A point, in axis coordinates (the logarithm's, on a logarithmic axis).
pub type Point = (f64, f64);

/// One line of a chart.
pub struct Series {
    /// Which look; any number, looks repeat after [`LOOKS_COUNT`].
    pub look: usize,
    /// The legend's text, not yet escaped.
    pub name: String,
    /// The line.
    pub line: Vec<Point>,
    /// Where it is marked.
    pub marks: Vec<Point>,
}

/// One axis, from `low` to `high`.
#[derive(Clone)]
pub struct Axis {
    caption: &'static str,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    light: Vec<f64>,
}

impl Axis {
    /// HdrHistogram's percentile scale: a point is -log10(1 - quantile). `high` is held to 2 (99 %) to 9.
    pub fn percentiles(high: f64) -> Self {
        let high = high.clamp(2.0, 9.0);
        let mut ticks =
            vec![(0.0, "0".to_owned()), (0.5_f64.log10().abs(), "50".to_owned()), (1.0, "90".to_owned())];
        for nines in 2..=high.floor() as usize {
            let decimals = "9".repeat(nines - 2);
            ticks.push((nines as f64, if nines == 2 { "99".into() } else { format!("99.{decimals}") }));
        }
        Self { caption: "percentile", low: 0.0, high: high + 0.08, ticks, light: Vec::new() }
    }

    /// A logarithmic axis of latencies that holds all `points` (log10 of nanoseconds).
    pub fn latencies(caption: &'static str, points: impl Iterator<Item = f64>) -> Self {
        let (least, most) =
            points.fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(point), high.max(point)));
        // Without a point any range will do; the largest value is 2^64 - 1.
        let (least, most) =
            if least > most { (3.0, 6.0) } else { (least.clamp(0.0, 20.0), most.clamp(0.0, 20.0)) };
        let grid = |mantissas: &'static [f64]| {
            (-1..=21).flat_map(move |decade| {
                mantissas.iter().map(move |mantissa| f64::from(decade) + mantissa.log10())
            })
        };
        let fine = || grid(&[1.0, 2.0, 5.0]);
        let low = fine().take_while(|tick| *tick <= least).last().unwrap_or(0.0);
        let high = fine().find(|tick| *tick > most + 0.01).unwrap_or(21.0);
        let inside = |tick: &f64| (low - 1e-9..=high + 1e-9).contains(tick);
        let labelled: Vec<f64> = if high - low <= 3.1 {
            fine().filter(inside).collect()
        } else {
            grid(&[1.0]).filter(inside).collect()
        };
        let ticks = labelled.into_iter().map(|tick| (tick, latency(10_f64.powf(tick)))).collect();
        let light = grid(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]).filter(inside).collect();
        Self { caption, low, high, ticks, light }
    }

    /// A linear axis from 0 that holds `most`, with about five ticks.
    pub fn linear(caption: &'static str, most: f64, label: fn(f64) -> String) -> Self {
        let most = if most.is_finite() && most > 0.0 { most * 1.04 } else { 1.0 };
        let rough = most / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|mantissa| mantissa * decade)
            .into_iter()
            .find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let ticks = (0..=5).map(|index| f64::from(index) * step).filter(|tick| *tick <= most);
        Self {
            caption,
            low: 0.0,
            high: most,
            ticks: ticks.map(|tick| (tick, label(tick))).collect(),
            light: Vec::new(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        (f64::from(limit.0) + share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            self.light.clone()
        } else {
            self.ticks.iter().map(|(tick, _)| *tick).collect()
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, point: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == point);
        tick.map_or_else(String::new, |(_, label)| label.clone())
    }
}

/// How much of the page a chart takes.
#[derive(Clone, Copy)]
pub enum Size {
    /// The page's width.
    Wide,
    /// A third or a half of it.
    Small,
}

/// One chart.
pub struct Chart {
    /// Unique in the page.
    pub id: String,
    /// Its heading, not yet escaped.
    pub title: String,
    /// What it shows, for those who cannot see it; not yet escaped.
    pub description: String,
    /// Where it goes.
    pub size: Size,
    /// Left to right.
    pub x: Axis,
    /// Bottom to top.
    pub y: Axis,
    /// A line to compare with, dotted.
    pub reference: Vec<Point>,
    /// What it shows.
    pub series: Vec<Series>,
}

impl Chart {
    /// The chart with its heading and legend, as an HTML figure.
    pub fn figure(&self) -> String {
        let (id, title, size) = (&self.id, escape(&self.title), self.size.dimensions());
        let mut drawing = String::new();
        let body = match self.draw(&mut drawing) {
            Ok(()) => drawing.split_once('>').map_or("", |(_, body)| body),
            Err(_) => "</svg>",
        };
        let description: String = self.description.split('\n').map(|part| escape(part) + " ").collect();
        let mut figure = format!(
            "<figure class=\"{}\">\n<figcaption>{title}</figcaption>\n<div class=\"scroll\">\
             <svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\">\
             <title id=\"{id}-title\">{title}</title><desc id=\"{id}-desc\">{description}</desc>{body}</div>\n<ul class=\"legend\">\n",
            self.size.class(),
            size.0,
            size.1,
        );
        for series in &self.series {
            let _ = writeln!(figure, "<li>{}<span>{}</span></li>", key(series.look), escape(&series.name));
        }
        figure + "</ul>\n</figure>\n"
    }

    fn draw(&self, drawing: &mut String) -> Result<(), Box<dyn Error>> {
        let area = SVGBackend::with_string(drawing, self.size.dimensions()).into_drawing_area();
        let font = |size: u32| ("sans-serif", size).into_font().color(&INK).into_text_style(&area);
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .margin_right(44)
            .x_label_area_size(88)
            .y_label_area_size(140)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(ShapeStyle::from(GRID).stroke_width(2))
            .light_line_style(ShapeStyle::from(GRID_LIGHT).stroke_width(1))
            .axis_style(ShapeStyle::from(INK).stroke_width(2))
            .label_style(font(29))
            .axis_desc_style(font(31))
            .x_desc(self.x.caption)
            .y_desc(self.y.caption)
            .draw()?;
        if !self.reference.is_empty() {
            let style = ShapeStyle::from(REFERENCE).stroke_width(3);
            chart.draw_series([PathElement::new(self.reference.clone(), style)])?;
        }
        for series in &self.series {
            let Look(colour, ..) = LOOKS[series.look % LOOKS_COUNT];
            chart.draw_series(LineSeries::new(
                series.line.iter().copied(),
                ShapeStyle::from(colour).stroke_width(4),
            ))?;
        }
        for series in &self.series {
            let Look(colour, ..) = LOOKS[series.look % LOOKS_COUNT];
            let (outline, hole) = outlines(series.look);
            chart.draw_series(series.marks.iter().map(|point| {
                let mark: ComposedElement<_, _, _, _> = EmptyElement::at(*point)
                    + Polygon::new(outline.clone(), colour.filled())
                    + Polygon::new(hole.clone(), PAPER.filled());
                mark
            }))?;
        }
        area.present()?;
        Ok(())
    }
}

impl Size {
    /// Drawing units, about two to a pixel on the screen: the backend has whole units only.
    fn dimensions(self) -> (u32, u32) {
        match self {
            Self::Wide => (1800, 860),
            Self::Small => (780, 600),
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Small => "small",
        }
    }
}

/// The mark of a look, and the hole in it: without extent where the mark is full.
fn outlines(look: usize) -> (Outline, Outline) {
    let outline = MARKS[look % MARKS.len()].to_vec();
    let hollow = look % LOOKS_COUNT >= MARKS.len();
    let hole =
        if hollow { outline.iter().map(|(x, y)| (x * 5 / 9, y * 5 / 9)).collect() } else { vec![(0, 0)] };
    (outline, hole)
}

/// A look's sample for legends and tables.
pub fn key(look: usize) -> String {
    let Look(RGBColor(red, green, blue), ..) = LOOKS[look % LOOKS_COUNT];
    let colour = format!("#{red:02X}{green:02X}{blue:02X}");
    let points = |outline: Outline| -> String {
        outline.into_iter().map(|(x, y)| format!("{},{} ", x + 44, y + 14)).collect()
    };
    let (outline, hole) = outlines(look);
    format!(
        "<svg class=\"chart key\" viewBox=\"0 0 88 28\" aria-hidden=\"true\"><polyline fill=\"none\" stroke=\"{colour}\" \
         stroke-width=\"4\" points=\"0,14 88,14\"/><polygon fill=\"{colour}\" points=\"{}\"/><polygon fill=\"#FFFFFE\" \
         points=\"{}\"/></svg>",
        points(outline),
        points(hole)
    )
}

/// The rules that give each look its colours and dashes.
pub fn style_sheet() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for Look(RGBColor(red, green, blue), on_dark, dashes) in LOOKS {
        let name = format!("#{red:02X}{green:02X}{blue:02X}");
        let _ = writeln!(light, ".chart polyline[stroke=\"{name}\"]{{stroke-dasharray:{dashes}}}");
        let _ = writeln!(
            dark,
            ".chart [stroke=\"{name}\"]{{stroke:{on_dark}}}.chart [fill=\"{name}\"]{{fill:{on_dark}}}"
        );
    }
    format!("{light}@media screen and (prefers-color-scheme:dark){{\n{dark}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_ticks_follow_the_nines() {
        let labels: Vec<_> = Axis::percentiles(4.6).ticks.into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0", "50", "90", "99", "99.9", "99.99"]);
    }

    #[test]
    fn axes_hold_what_they_are_given() {
        for points in [vec![], vec![0.0], vec![4.3, 4.31], vec![0.0, 20.0]] {
            let axis = Axis::latencies("", points.iter().copied());
            assert!(axis.low < axis.high, "{points:?}");
            assert!(points.iter().all(|point| (axis.low..=axis.high).contains(point)), "{points:?}");
            assert!(axis.ticks.len() >= 2, "{points:?}");
        }
        for most in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e-9, 7.0, 1e300] {
            let axis = Axis::linear("", most, |_| String::new());
            assert!(axis.high.is_finite() && axis.high > 0.0 && axis.ticks.len() >= 2, "{most}");
            assert!(!most.is_finite() || axis.high >= most);
        }
    }

    #[test]
    fn looks_differ() {
        for first in 0..LOOKS_COUNT {
            for second in 0..first {
                assert_ne!(key(first), key(second));
            }
        }
    }
}
