//! What size costs: models of several sizes beside each other, as a table, as lines of JSON, as a chart.
//!
//! A row is a model that was evaluated, of a series that was made in one way: in one step, in several, with healing. All were
//! evaluated on the same windows against the same reference, or the rows do not compare; [`Summary`] says on how many.

use std::io;

use serde::Serialize;

use crate::chart::{Area, Axis, Drawing, Panel, Point, Series, Tick, legend_growth, written};
use crate::checkpoint::Amount;
use crate::evaluate::{Estimate, Summary};

/// A model, its size, and what it scored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// How it was made, as it is named in a chart: "gradual", "one-shot". Rows of one series are joined by a line.
    pub series: String,
    /// The model.
    pub name: String,
    /// Parameters and bytes, in [`Inventory::total`](crate::checkpoint::Inventory::total)'s sense.
    #[serde(flatten)]
    pub size: Amount,
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The evaluation it comes from.
    #[serde(flatten)]
    pub summary: Summary,
}

impl Row {
    /// A model of a series that was evaluated.
    pub fn new(series: impl Into<String>, name: impl Into<String>, size: Amount, summary: Summary) -> Row {
        let (series, name) = (series.into(), name.into());
        Row { series, name, size, perplexity: summary.perplexity(), summary }
    }

    fn gigabytes(&self) -> f64 {
        self.size.bytes as f64 / 1e9
    }

    /// Whether it has a place in a chart: a collapsed model can have a perplexity that is no finite number.
    fn is_drawable(&self) -> bool {
        self.size.bytes > 0 && self.perplexity.is_finite() && self.perplexity > 0.0
    }
}

/// The rows as a table for people, columns aligned. An error (±) is a standard error over windows; a dash stands for what was not
/// measured.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "series",
        "model",
        "parameters, B",
        "size, GB",
        "perplexity",
        "nats a token",
        "KL, nats",
        "same top-1, %",
    ];
    let mut cells = vec![head.map(str::to_owned)];
    let dash = || "-".to_owned();
    for row in rows {
        let beside = row.summary.scores.reference;
        let percent = |e: Estimate| Estimate { mean: 100.0 * e.mean, error: e.error.map(|x| 100.0 * x) };
        cells.push([
            printable(&row.series),
            printable(&row.name),
            written(row.size.parameters as f64 / 1e9),
            written(row.gigabytes()),
            written(row.perplexity),
            format!("{:.4}", row.summary.scores.nll),
            beside.map_or_else(dash, |b| format!("{:.4}", b.kl)),
            beside.map_or_else(dash, |b| format!("{:.2}", percent(b.agreement))),
        ]);
    }
    let width = |i: usize| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let (names, numbers) = row.split_at(2);
        let names = names.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let numbers = numbers.iter().zip(&widths[2..]).map(|(cell, width)| format!("{cell:>width$}"));
        names.chain(numbers).collect::<Vec<_>>().join("  ") + "\n"
    };
    cells.iter().map(line).collect()
}

/// Names come from folders and may hold anything.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Writes the rows as JSON, one object `{"event":"row",…}` a line. What is no finite number becomes null.
///
/// # Errors
/// Those of `out`.
pub fn ndjson(rows: &[Row], out: &mut impl io::Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Event<'a> {
        event: &'static str,
        #[serde(flatten)]
        row: &'a Row,
    }
    for row in rows {
        serde_json::to_writer(&mut *out, &Event { event: "row", row })?;
        writeln!(out)?;
    }
    Ok(())
}

const WIDTH: f64 = 720.0;
const AREA: Area = Area { left: 72.0, right: 696.0, top: 64.0, bottom: 380.0 };
/// Where the legend begins.
const LEGEND: f64 = 460.0;
/// Models named below a chart that they could not be drawn in; more are counted.
const NAMED: usize = 4;

/// Draws perplexity against size in gigabytes as SVG, a line for each series, both axes logarithmic: equal lengths are
/// equal ratios of size, and equal differences in nats. Models without a finite perplexity are named below.
pub fn chart(title: &str, rows: &[Row]) -> String {
    let drawn = || rows.iter().filter(|row| row.is_drawable());
    let sizes = Axis::logarithmic(drawn().map(Row::gigabytes));
    let tick = |(at, label)| Tick { at, labels: vec![label] };
    let series = lines(rows);
    let across = (AREA.left, AREA.right);
    let below = LEGEND + legend_growth(&series, across) + 22.0;
    let mut drawing = Drawing::new(WIDTH, below + 14.0, AREA.left, title);
    drawing.panel(&Panel {
        area: AREA,
        title: "perplexity",
        x: sizes,
        x_title: "size, GB",
        x_ticks: sizes.ticks().into_iter().map(tick).collect(),
        y: Axis::logarithmic(drawn().map(|row| row.perplexity)),
        series: &series,
    });
    drawing.legend(&series, across, LEGEND);
    if let Some(note) = left_out(rows) {
        drawing.note(AREA.left, below, &note);
    }
    drawing.finish()
}

/// A line for each series, in the order they come, from the smallest model to the largest.
fn lines(rows: &[Row]) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for row in rows {
        let at = match lines.iter().position(|line| line.name == row.series) {
            Some(at) => at,
            None => {
                lines.push(Series { name: row.series.clone(), points: Vec::new(), dashed: false });
                lines.len() - 1
            }
        };
        if row.is_drawable() {
            let (x, y) = (row.gigabytes(), row.perplexity);
            let note = format!("{}: {} GB, perplexity {}", row.name, written(x), written(y));
            lines[at].points.push(Point { x, y, note });
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    lines
}

fn left_out(rows: &[Row]) -> Option<String> {
    let names: Vec<&str> = rows.iter().filter(|r| !r.is_drawable()).map(|r| r.name.as_str()).collect();
    let (named, more) = names.split_at(names.len().min(NAMED));
    match (named, more.len()) {
        ([], _) => None,
        (named, 0) => Some(format!("not drawn, without size or finite perplexity: {}", named.join(", "))),
        (named, n) => {
            Some(format!("not drawn, without size or finite perplexity: {} and {n} more", named.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests;
