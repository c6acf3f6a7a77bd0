use super::*;

/// Asserts that a text is one well-formed element: tags nest, attributes are quoted and stand once, every `&` begins an
/// entity, no character is one that XML 1.0 forbids. Returns the elements by name and attributes, in order.
pub(crate) fn elements(xml: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (mut found, mut open, mut rest) = (Vec::new(), Vec::new(), xml.trim_end());
    assert!(rest.chars().all(|c| c == '\n' || !c.is_control()) && !rest.contains(['\u{fffe}', '\u{ffff}']));
    while let Some(begin) = rest.find('<') {
        assert!(begin == 0 || !open.is_empty(), "text outside the element: {rest}");
        check_text(&rest[..begin]);
        let end = begin + rest[begin..].find('>').expect("a tag that ends");
        let tag = &rest[begin + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed in another order");
        } else {
            assert!(found.is_empty() || !open.is_empty(), "a second root");
            let (body, empty) = match tag.strip_suffix('/') {
                Some(body) => (body, true),
                None => (tag, false),
            };
            let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
            assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic()), "{tag}");
            found.push((name.to_owned(), parse_attributes(attributes)));
            if !empty {
                open.push(name.to_owned());
            }
        }
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} left open, {rest:?} left over");
    found
}

fn parse_attributes(mut rest: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    while !rest.trim_start().is_empty() {
        let (name, value) = rest.trim_start().split_once("=\"").expect("a quoted attribute");
        let (value, after) = value.split_once('"').expect("a closing quote");
        check_text(value);
        assert!(found.iter().all(|(n, _)| n != name), "{name} twice");
        found.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
    found
}

fn check_text(text: &str) {
    for after in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;"];
        assert!(known.iter().any(|entity| after.starts_with(entity)), "&{after}");
    }
}

/// A number among the attributes of an element.
pub(crate) fn number(attributes: &[(String, String)], name: &str) -> f64 {
    attributes.iter().find(|(n, _)| n == name).expect(name).1.parse().expect(name)
}

fn series(name: &str, points: &[(f64, f64)]) -> Series {
    let point = |&(x, y): &(f64, f64)| Point { x, y, note: format!("{name} at {x}") };
    Series { name: name.to_owned(), points: points.iter().map(point).collect(), dashed: false }
}

const AREA: Area = Area { left: 50.0, right: 450.0, top: 60.0, bottom: 260.0 };

fn draw(series: &[Series]) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    let ticks = Axis::logarithmic(points().map(|p| p.x)).ticks();
    let mut drawing = Drawing::new(500.0, 340.0, 50.0, "a < b & \"c\"");
    drawing.panel(&Panel {
        area: AREA,
        title: "<y>",
        x: Axis::logarithmic(points().map(|p| p.x)),
        x_title: "x & x",
        x_ticks: ticks.into_iter().map(|(at, label)| Tick { at, labels: vec![label] }).collect(),
        y: Axis::from_zero(points().map(|p| p.y)),
        series,
    });
    drawing.legend(series, (50.0, 450.0), 320.0);
    drawing.note(50.0, 330.0, "\u{1}\u{7f}\u{ffff} is no text");
    drawing.finish()
}

#[test]
fn what_can_be_drawn_lies_in_its_panel_and_the_rest_is_left_out() {
    let svg = draw(&[
        series("a", &[(1.0, 5.0), (f64::NAN, 6.0), (10.0, f64::INFINITY), (100.0, 7.0)]),
        series("b & <b>", &[(0.0, 5.0), (-1.0, 4.0), (20.0, 0.0)]),
        series("nothing", &[]),
        series("NaN only", &[(f64::NAN, f64::NAN)]),
    ]);
    let elements = elements(&svg);
    let of = |wanted: &str| elements.iter().filter(|(name, _)| name == wanted).collect::<Vec<_>>();
    let circles: Vec<(f64, f64)> =
        of("circle").iter().map(|(_, a)| (number(a, "cx"), number(a, "cy"))).collect();
    assert_eq!(circles.len(), 3);
    for (x, y) in &circles {
        assert!((AREA.left..=AREA.right).contains(x) && (AREA.top..=AREA.bottom).contains(y), "{x}, {y}");
    }
    // 1 and 100 are the ends of the axis, inside its margin; 5 and 7 of 8; 0 is the bottom.
    assert_eq!(circles[0], (66.0, 135.0));
    assert_eq!((circles[1].0, circles[2].1), (434.0, AREA.bottom));
    assert_eq!(of("polyline").len(), 1, "one point makes no line");
    assert!(!svg.contains("NaN,") && !svg.contains("inf"));
    for name in [">a</text>", ">b &amp; &lt;b&gt;</text>", ">nothing</text>", ">NaN only</text>"] {
        assert!(svg.contains(name), "{name}");
    }
}

#[test]
fn an_empty_drawing_and_names_that_are_not_xml() {
    assert_eq!(elements(&draw(&[])).iter().filter(|(name, _)| name == "circle").count(), 0);
    assert!(draw(&[]).contains("\u{fffd}\u{fffd}\u{fffd} is no text"));
    elements(&draw(&[series("\u{0}\u{1b}[31m\n'\"&amp;", &[(1.0, 1.0)])]));
}

#[test]
fn a_long_legend_goes_on_below() {
    let names = ["short", "a name that takes more than a column", "c", "d", "e"];
    let all: Vec<Series> = names.iter().map(|name| series(name, &[])).collect();
    let places = places(&all, 50.0, 450.0);
    assert_eq!(places[0], (50.0, 0));
    assert!(places.iter().all(|(x, _)| (50.0..450.0).contains(x)));
    assert!(places.windows(2).all(|p| p[1].1 > p[0].1 || p[1].0 >= p[0].0 + 120.0), "{places:?}");
    assert_eq!(legend_growth(&all, (50.0, 450.0)), LEGEND_ROW * places[4].1 as f64);
    assert!(places[4].1 >= 1);
    assert_eq!(legend_growth(&[], (50.0, 450.0)), 0.0);
}
