//! One logarithmic axis: values to pixels, and where its lines and labels are.

/// Labels on an axis of powers of two, at most.
const MOST_LABELS: i32 = 14;

/// An axis from `low` to `high`, drawn from pixel `from` to pixel `to`.
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// In rising order.
    pub ticks: Vec<Tick>,
}

/// A line across the panel.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where.
    pub value: f64,
    /// What stands beside it; nothing for a line between.
    pub label: Option<String>,
}

impl Scale {
    /// An axis of bytes, with powers of two. There is at least one value; all are positive.
    pub fn bytes(values: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Scale {
        let (low, high) = bounds(values);
        let (first, last) = (low.log2().floor() as i32, high.log2().ceil() as i32);
        let last = last.max(first + 1);
        let step = [1, 2, 5, 10].into_iter().find(|step| (last - first) / step < MOST_LABELS);
        let step = step.unwrap_or(last - first);
        let ticks = (first..=last)
            .filter(|power| power % step == 0)
            .map(|power| Tick { value: 2f64.powi(power), label: Some(byte_label(power)) })
            .collect();
        Scale { low: 2f64.powi(first), high: 2f64.powi(last), from, to, ticks }
    }

    /// An axis of anything else, with 1, 2 and 5 times powers of ten.
    pub fn decades(values: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Scale {
        let (low, high) = bounds(values);
        let steps = (low.log10().floor() as i32..=high.log10().ceil() as i32).flat_map(|power| {
            [1, 2, 5].map(|digit| (digit, power, f64::from(digit) * 10f64.powi(power)))
        });
        let steps: Vec<(i32, i32, f64)> = steps.collect();
        // A hair of room, so that 5.000001 does not need the line above 5.
        let under = steps.iter().rev().find(|step| step.2 <= low * 1.001).unwrap_or(&steps[0]);
        let over = steps.iter().find(|step| step.2 * 1.001 >= high && step.2 > under.2);
        let (low, high) = (under.2, over.map_or(under.2 * 10.0, |step| step.2));
        // Few decades have a label on each line, many only on powers of ten.
        let all = high / low <= 300.0;
        let ticks = steps.iter().filter(|step| step.2 >= low * 0.999 && step.2 <= high * 1.001);
        let ticks = ticks.map(|&(digit, power, value)| Tick {
            value,
            label: (all || digit == 1).then(|| decimal_label(digit, power)),
        });
        Scale { low, high, from, to, ticks: ticks.collect() }
    }

    /// Where a value is.
    pub fn pixel(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.low).ln() / (self.high / self.low).ln()
    }
}

/// The least and the greatest.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, 0.0), |(low, high), value| (value.min(low), value.max(high)))
}

/// 2^power bytes: `4`, `64K`, `16M`.
fn byte_label(power: i32) -> String {
    let unit = ["", "K", "M", "G", "T", "P", "E"][(power.clamp(0, 69) / 10) as usize];
    format!("{}{unit}", 1u64 << (power.max(0) % 10))
}

/// digit * 10^power: `0.05`, `20`, `10 000`.
fn decimal_label(digit: i32, power: i32) -> String {
    if power < 0 {
        return format!("0.{digit:0>width$}", width = -power as usize);
    }
    let digits = format!("{digit}{}", "0".repeat(power as usize));
    let mut label = String::new();
    for (at, c) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            label.push('\u{a0}');
        }
        label.push(c);
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks.iter().filter_map(|tick| tick.label.clone()).collect()
    }

    #[test]
    fn bytes_have_powers_of_two() {
        let scale = Scale::bytes([4.0, 67108864.0].into_iter(), (100.0, 580.0));
        let expected =
            ["4", "16", "64", "256", "1K", "4K", "16K", "64K", "256K", "1M", "4M", "16M", "64M"];
        assert_eq!(labels(&scale), expected);
        assert_eq!((scale.pixel(4.0), scale.pixel(67108864.0)), (100.0, 580.0));
        assert!((scale.pixel(16384.0) - 340.0).abs() < 1e-9);
    }

    #[test]
    fn other_axes_have_decades() {
        let wide = Scale::decades([9.0, 110_000.0].into_iter(), (0.0, 1.0));
        assert_eq!(labels(&wide), ["10", "100", "1\u{a0}000", "10\u{a0}000", "100\u{a0}000"]);
        assert_eq!(wide.ticks.first().map(|tick| tick.value), Some(5.0));
        let narrow = Scale::decades([0.03, 0.9].into_iter(), (0.0, 1.0));
        assert_eq!(labels(&narrow), ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
    }

    #[test]
    fn one_value_has_an_axis() {
        for value in [4.0, 1.0, 5.0, 1000.0, 0.3] {
            for scale in [
                Scale::decades(std::iter::once(value), (0.0, 1.0)),
                Scale::bytes(std::iter::once(value.max(1.0)), (0.0, 1.0)),
            ] {
                assert!(scale.high > scale.low && scale.pixel(value.max(scale.low)).is_finite());
                assert!(!labels(&scale).is_empty(), "{value}");
            }
        }
    }
}
