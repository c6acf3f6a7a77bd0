use super::*;
use crate::chart::tests::{elements, number};
use crate::evaluate::{Divergence, Scores};

fn row(series: &str, name: &str, bytes: u64, nll: f64, kl: Option<f64>) -> Row {
    let estimate = |mean| Estimate { mean, error: Some(mean / 100.0) };
    let reference = kl.map(|kl| Divergence {
        nll: estimate(3.5),
        nll_increase: estimate(nll - 3.5),
        kl: estimate(kl),
        agreement: estimate(0.5),
        log_prob_difference: estimate(0.25),
    });
    let scores = Scores { nll: estimate(nll), reference };
    let size = Amount { parameters: bytes / 2, bytes };
    Row::new(series, name, size, Summary { windows: 2, tokens: 512, scores })
}

fn rows() -> Vec<Row> {
    vec![
        row("original", "whole", 40_000_000_000, 3.5, None),
        row("gradual", "half", 20_000_000_000, 4.0, Some(0.125)),
        row("gradual", "quarter", 10_000_000_000, 4.5, Some(1.5)),
        row("one-shot", "half", 20_000_000_000, 5.0, Some(2.25)),
    ]
}

#[test]
fn a_table_is_aligned() {
    let table = table(&rows());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "\n{table}");
    let cells: Vec<&str> = lines[2].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let expected =
        ["gradual", "half", "10", "20", "54.6", "4.0000 ± 0.0400", "0.1250 ± 0.0013", "50.00 ± 0.50"];
    assert_eq!(cells, expected);
    assert!(lines[1].ends_with('-') && lines[1].contains("33.12"), "{table}");
    assert!(super::table(&[]).starts_with("series") && super::table(&[]).lines().count() == 1);
    let hostile = super::table(&[row("a\nb", "\u{1b}[2J", 1, f64::NAN, None)]);
    assert_eq!(hostile.lines().count(), 2);
    assert!(hostile.contains("NaN") && !hostile.contains('\u{1b}'), "{hostile}");
}

#[test]
fn lines_of_json() {
    let mut bytes = Vec::new();
    let mut rows = rows();
    rows.push(row("one-shot", "collapsed", 5, f64::NAN, None));
    ndjson(&rows, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let values: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(values.len(), 5);
    let gradual = &values[1];
    assert_eq!((&gradual["event"], &gradual["series"]), (&"row".into(), &"gradual".into()));
    assert_eq!(
        (&gradual["bytes"], &gradual["parameters"]),
        (&20_000_000_000u64.into(), &10_000_000_000u64.into())
    );
    assert_eq!((&gradual["windows"], &gradual["tokens"]), (&2.into(), &512.into()));
    assert_eq!(gradual["reference"]["kl"]["mean"], 0.125);
    assert_eq!(gradual["nll"]["mean"], 4.0);
    assert!((gradual["perplexity"].as_f64().unwrap() - 4f64.exp()).abs() < 1e-9);
    assert!(values[0]["reference"].is_null() && values[4]["perplexity"].is_null());
}

#[test]
fn a_chart_has_a_line_for_each_series_and_its_points_inside() {
    let svg = chart("size & perplexity", &rows());
    let elements = elements(&svg);
    let circles: Vec<(f64, f64)> = elements
        .iter()
        .filter(|(name, _)| name == "circle")
        .map(|(_, attributes)| (number(attributes, "cx"), number(attributes, "cy")))
        .collect();
    assert_eq!(circles.len(), 4);
    for (x, y) in &circles {
        assert!((AREA.left..=AREA.right).contains(x) && (AREA.top..=AREA.bottom).contains(y), "{x}, {y}");
    }
    // original; gradual from small to large; one-shot. Larger is further right, worse is higher up.
    let [whole, quarter, half, one_shot] = circles[..] else { panic!("{circles:?}") };
    assert!(quarter.0 < half.0 && half.0 < whole.0 && half.0 == one_shot.0);
    assert!(one_shot.1 < quarter.1 && quarter.1 < half.1 && half.1 < whole.1);
    assert!((half.0 - (quarter.0 + whole.0) / 2.0).abs() < 0.11, "equal ratios are equal lengths");
    assert_eq!(elements.iter().filter(|(name, _)| name == "polyline").count(), 1, "one model makes no line");
    for text in
        [">gradual<", ">one-shot<", ">size, GB<", ">perplexity<", "<title>quarter: 10 GB, perplexity 90.02<"]
    {
        assert!(svg.contains(text), "{text} in\n{svg}");
    }
}

#[test]
fn a_chart_names_what_it_cannot_draw() {
    let nothing = elements(&chart("nothing", &[]));
    assert!(nothing.iter().all(|(name, _)| name != "circle"));
    let mut rows = rows();
    for (i, nll) in [f64::NAN, f64::INFINITY, 1e4, -1e4].into_iter().enumerate() {
        rows.push(row("collapsed", &format!("c<{i}>"), 1_000_000_000, nll, None));
    }
    let svg = chart("some", &rows);
    let count = elements(&svg).iter().filter(|(name, _)| name == "circle").count();
    assert_eq!(count, 4);
    assert!(
        svg.contains(
            "not drawn, without size or finite perplexity: c&lt;0&gt;, c&lt;1&gt;, c&lt;2&gt;, c&lt;3&gt;<"
        ),
        "{svg}"
    );
    rows.push(row("no size", "\u{1}", 0, 3.0, None));
    let svg = chart("some", &rows);
    assert!(svg.contains("c&lt;3&gt; and 1 more<") && svg.contains(">no size<"), "{svg}");
    elements(&svg);
}
