//! Line charts as SVG: panels with axes, a line for each series, a legend.
//!
//! What cannot be drawn (NaN, infinities, what has no logarithm) is left out; everything else lies inside its panel. The text
//! is well-formed XML whatever the names hold.

mod axis;

use std::fmt::Write;

pub(crate) use axis::{Axis, written};

/// Told apart by colour-blind readers too (Okabe and Ito); a seventh series begins again.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// Labels of ticks closer together than this would overlap.
const LABEL_ROOM: f64 = 38.0;
/// Height of a row of the legend.
const LEGEND_ROW: f64 = 20.0;

/// A line and its points.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in the order they are joined.
    pub points: Vec<Point>,
    /// Drawn in dashes: a bound, not something to choose.
    pub dashed: bool,
}

/// A point of a line.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub x: f64,
    pub y: f64,
    /// Shown when a pointer rests on it; empty for nothing.
    pub note: String,
}

/// A mark on the horizontal axis.
#[derive(Debug, Clone)]
pub(crate) struct Tick {
    pub at: f64,
    /// One below the other.
    pub labels: Vec<String>,
}

/// A rectangle of the drawing, in its units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

/// A plot: what is drawn where. Its title stands above its area, ticks and the name of the horizontal axis below.
pub(crate) struct Panel<'a> {
    pub area: Area,
    pub title: &'a str,
    pub x: Axis,
    pub x_title: &'a str,
    pub x_ticks: Vec<Tick>,
    pub y: Axis,
    pub series: &'a [Series],
}

/// An SVG in the making.
pub(crate) struct Drawing {
    out: String,
}

impl Drawing {
    /// An empty one of a size, with its title at (left, 26).
    pub(crate) fn new(width: f64, height: f64, left: f64, title: &str) -> Drawing {
        let mut drawing = Drawing { out: String::new() };
        drawing.put(format_args!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#222">"##
        ));
        drawing.put(format_args!(r##"<rect width="100%" height="100%" fill="#fff"/>"##));
        drawing.put(format_args!(r##"<text x="{left}" y="26" font-size="15">{}</text>"##, escaped(title)));
        drawing
    }

    /// The whole of it.
    pub(crate) fn finish(mut self) -> String {
        self.put(format_args!("</svg>"));
        self.out
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.out, "{element}");
    }

    /// A line of small grey text.
    pub(crate) fn note(&mut self, x: f64, y: f64, text: &str) {
        self.put(format_args!(r##"<text x="{x}" y="{y}" fill="#777">{}</text>"##, escaped(text)));
    }

    /// Draws a panel.
    pub(crate) fn panel(&mut self, panel: &Panel<'_>) {
        let Area { left, right, top, bottom } = panel.area;
        self.put(format_args!(r##"<text x="{left}" y="{}">{}</text>"##, top - 12.0, escaped(panel.title)));
        self.grid(panel);
        self.ticks(panel);
        self.put(format_args!(r##"<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#222"/>"##));
        self.put(format_args!(
            r##"<text x="{}" y="{}" text-anchor="middle">{}</text>"##,
            (left + right) / 2.0,
            bottom + 52.0,
            escaped(panel.x_title)
        ));
        for (i, series) in panel.series.iter().enumerate() {
            self.line(panel, series, COLOURS[i % COLOURS.len()]);
        }
    }

    fn grid(&mut self, panel: &Panel<'_>) {
        let Area { left, right, .. } = panel.area;
        for (value, label) in panel.y.ticks() {
            let Some(y) = panel.y(value) else { continue };
            self.put(format_args!(r##"<path d="M{left} {y:.1}H{right}" stroke="#ddd"/>"##));
            self.put(format_args!(
                r##"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"##,
                left - 8.0,
                y + 4.0
            ));
        }
    }

    fn ticks(&mut self, panel: &Panel<'_>) {
        let bottom = panel.area.bottom;
        let mut free = 0.0;
        for tick in &panel.x_ticks {
            let Some(x) = panel.x(tick.at) else { continue };
            self.put(format_args!(r##"<path d="M{x:.1} {bottom}v5" stroke="#222"/>"##));
            if x < free {
                continue;
            }
            for (i, label) in tick.labels.iter().enumerate() {
                let y = bottom + 18.0 + 15.0 * i as f64;
                let fill = if i > 0 { r##" fill="#777""## } else { "" };
                self.put(format_args!(
                    r##"<text x="{x:.1}" y="{y}" text-anchor="middle"{fill}>{}</text>"##,
                    escaped(label)
                ));
            }
            free = x + LABEL_ROOM;
        }
    }

    fn line(&mut self, panel: &Panel<'_>, series: &Series, colour: &str) {
        let at = |p: &Point| Some((panel.x(p.x)?, panel.y(p.y)?));
        let drawn: Vec<_> = series.points.iter().filter_map(|p| Some((at(p)?, p))).collect();
        if drawn.len() > 1 {
            let points: Vec<String> = drawn.iter().map(|((x, y), _)| format!("{x:.1},{y:.1}")).collect();
            self.put(format_args!(
                r##"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{}/>"##,
                points.join(" "),
                dashes(series)
            ));
        }
        for ((x, y), point) in drawn {
            let circle = format!(r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}""##);
            match point.note.as_str() {
                "" => self.put(format_args!("{circle}/>")),
                note => self.put(format_args!("{circle}><title>{}</title></circle>", escaped(note))),
            }
        }
    }

    /// Names the lines, from (left, y) on, in as many rows as fit between `left` and `right`.
    pub(crate) fn legend(&mut self, series: &[Series], (left, right): (f64, f64), y: f64) {
        for (i, (series, (x, row))) in series.iter().zip(places(series, left, right)).enumerate() {
            let (y, colour) = (y + LEGEND_ROW * row as f64, COLOURS[i % COLOURS.len()]);
            self.put(format_args!(
                r##"<path d="M{x} {y}h24" stroke="{colour}" stroke-width="2"{}/>"##,
                dashes(series)
            ));
            let name = escaped(&series.name);
            self.put(format_args!(r##"<text x="{}" y="{}">{name}</text>"##, x + 30.0, y + 4.0));
        }
    }
}

impl Panel<'_> {
    /// Where a value lies across the drawing; `None` if nowhere in the panel.
    fn x(&self, value: f64) -> Option<f64> {
        Some(self.area.left + (self.area.right - self.area.left) * self.x.along(value)?)
    }

    /// Where a value lies down the drawing; `None` if nowhere in the panel.
    fn y(&self, value: f64) -> Option<f64> {
        Some(self.area.bottom - (self.area.bottom - self.area.top) * self.y.along(value)?)
    }
}

/// Height of a legend beyond its first row.
pub(crate) fn legend_growth(series: &[Series], (left, right): (f64, f64)) -> f64 {
    LEGEND_ROW * places(series, left, right).last().map_or(0, |place| place.1) as f64
}

/// Where the legend's entries begin, and in which row.
fn places(series: &[Series], left: f64, right: f64) -> Vec<(f64, usize)> {
    let (mut x, mut row) = (left, 0);
    let place = |series: &Series| {
        let width = (54.0 + 7.0 * series.name.chars().count() as f64).max(120.0);
        if x > left && x + width > right {
            (x, row) = (left, row + 1);
        }
        let place = (x, row);
        x += width;
        place
    };
    series.iter().map(place).collect()
}

fn dashes(series: &Series) -> &'static str {
    if series.dashed { r##" stroke-dasharray="6 4""## } else { "" }
}

/// Text as XML 1.0 has it: four characters have another meaning there, and control characters must not occur.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
