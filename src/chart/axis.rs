//! Where values lie along an axis, and the round values that are marked on it.

/// Room between a panel's edges and the outermost values of a logarithmic axis.
const MARGIN: f64 = 0.04;

/// A direction of a panel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    /// From 0 to a multiple of a round step.
    Linear { step: f64 },
    /// Equal ratios are equal lengths; the extremes keep a margin.
    Logarithmic,
}

impl Axis {
    /// From 0 to at least the largest of some values, ending at a round one.
    pub(crate) fn from_zero(values: impl IntoIterator<Item = f64>) -> Axis {
        let highest = values.into_iter().filter(|v| v.is_finite()).fold(0.0, f64::max);
        let step = round_step(highest / 5.0);
        let high = (highest / step).ceil().max(1.0) * step;
        Axis { low: 0.0, high, scale: Scale::Linear { step } }
    }

    /// From the least to the largest of some values; what has no logarithm is left out.
    pub(crate) fn logarithmic(values: impl IntoIterator<Item = f64>) -> Axis {
        let positive = values.into_iter().filter(|v| v.is_finite() && *v > 0.0);
        let extremes = positive.fold(None, |seen, v| match seen {
            None => Some((v, v)),
            Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
        });
        let (low, high) = extremes.unwrap_or((1.0, 1.0));
        Axis { low, high, scale: Scale::Logarithmic }
    }

    /// How far along a value lies, 0 to 1; `None` if not on the axis.
    pub(crate) fn along(&self, value: f64) -> Option<f64> {
        if !(self.low..=self.high).contains(&value) {
            return None;
        }
        Some(match self.scale {
            Scale::Linear { .. } => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => {
                let span = self.high.ln() - self.low.ln();
                let share = if span > 0.0 { (value.ln() - self.low.ln()) / span } else { 0.5 };
                MARGIN + (1.0 - 2.0 * MARGIN) * share.clamp(0.0, 1.0)
            }
        })
    }

    /// Round values on the axis, ascending, and how they are written. On a logarithmic one whose ends are far apart these
    /// are 1, 2 and 5 times powers of ten, or powers alone; on a short one, where few of those lie, they are evenly apart.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear { step } => self.multiples(step),
            Scale::Logarithmic if self.high <= 10.0 * self.low => {
                let span = self.high - self.low;
                // A single value is marked as it is.
                if span > 0.0 {
                    self.multiples(round_step(span / 5.0))
                } else {
                    vec![(self.low, written(self.low))]
                }
            }
            Scale::Logarithmic => self.decades(),
        }
    }

    fn multiples(&self, step: f64) -> Vec<(f64, String)> {
        let digits = (-step.log10().floor()).clamp(0.0, 17.0) as usize;
        // Ends that rounding moved by a hair still have their mark.
        let (first, last) = ((self.low / step - 1e-9).ceil(), (self.high / step + 1e-9).floor());
        let count = (last - first).clamp(0.0, 20.0) as u32;
        let value = |i: u32| ((first + f64::from(i)) * step).clamp(self.low, self.high);
        (0..=count).map(|i| (value(i), format!("{:.digits$}", value(i)))).collect()
    }

    fn decades(&self) -> Vec<(f64, String)> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().floor() as i32);
        let factors: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let apart = ((last - first) / 10).max(1) as usize;
        let powers = (first..=last).step_by(apart).map(|power| 10f64.powi(power));
        let values = powers.flat_map(|power| factors.iter().map(move |factor| factor * power));
        values.filter(|v| (self.low..=self.high).contains(v)).map(|v| (v, written(v))).collect()
    }
}

/// A number with four significant digits, without zeros that say nothing.
pub(crate) fn written(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let power = value.abs().log10().floor();
    if !(-4.0..9.0).contains(&power) {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.digits$}", digits = (3.0 - power).max(0.0) as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    if !least.is_finite() || least < f64::MIN_POSITIVE {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis) -> Vec<String> {
        for (value, _) in axis.ticks() {
            let along = axis.along(value);
            assert!(along.is_some_and(|a| (0.0..=1.0).contains(&a)), "{value} on {axis:?}: {along:?}");
        }
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn steps_are_round() {
        for (least, step) in
            [(20.0, 20.0), (21.0, 50.0), (7.0, 10.0), (0.3, 0.5), (0.0, 1.0), (f64::NAN, 1.0)]
        {
            assert!((round_step(least) - step).abs() < 1e-9, "{least}");
        }
    }

    #[test]
    fn axes_from_zero() {
        let axis = Axis::from_zero([3.0, f64::NAN, 41.0, f64::INFINITY]);
        assert_eq!(labels(axis), ["0", "10", "20", "30", "40", "50"]);
        assert_eq!((axis.along(25.0), axis.along(50.1), axis.along(-1.0)), (Some(0.5), None, None));
        assert_eq!(axis.along(f64::NAN), None);
        assert_eq!(labels(Axis::from_zero([0.3])), ["0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(Axis::from_zero([])), ["0", "1"]);
    }

    #[test]
    fn logarithmic_axes() {
        let axis = Axis::logarithmic([100.0, 0.0, -3.0, f64::NAN, 1.0, f64::INFINITY]);
        assert_eq!(labels(axis), ["1", "2", "5", "10", "20", "50", "100"]);
        assert!((axis.along(10.0).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(axis.along(1.0), Some(MARGIN));
        assert!((axis.along(100.0).unwrap() - (1.0 - MARGIN)).abs() < 1e-12);
        assert_eq!((axis.along(0.5), axis.along(0.0), axis.along(f64::INFINITY)), (None, None, None));
        assert_eq!(labels(Axis::logarithmic([35.2, 41.0])), ["36", "38", "40"]);
        assert_eq!(labels(Axis::logarithmic([3e-3, 9e7])).first().unwrap(), "0.01");
        assert!(labels(Axis::logarithmic([f64::MIN_POSITIVE, f64::MAX])).len() < 32);
        assert_eq!(labels(Axis::logarithmic([18.9])), ["18.9"]);
        assert_eq!(Axis::logarithmic([18.9]).along(18.9), Some(0.5));
        assert_eq!(labels(Axis::logarithmic([])), ["1"]);
    }

    #[test]
    fn numbers_are_written_with_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.018911, "0.01891"),
            (39.8299, "39.83"),
            (958.5, "958.5"),
            (12_345.6, "12346"),
            (1e12, "1.000e12"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(written(value), text);
        }
    }
}
