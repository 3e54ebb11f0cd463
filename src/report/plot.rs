//! Small line charts as inline SVG.
//!
//! Drawn here and not by a plotting crate: those write fixed colours, while these charts take theirs from the page
//! (`currentColor` and custom properties), follow it into the dark and into print, and tell a screen reader what
//! they show.

use super::palette::Colour;
use super::{escape, figure, scientific};
use std::fmt::Write;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 42.0;
const BOTTOM: f64 = 40.0;

/// Sizes between which a difference of two values neither overflows nor loses its figures: what is larger is left
/// out, what is smaller is 0.
const SIZES: [f64; 2] = [1e-290, 1e290];

/// With more epochs than this, curves have no dots.
const DOTS: usize = 64;

/// A curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub name: String,
    pub colour: Colour,
    /// One for each epoch; what is missing or not finite leaves a gap.
    pub values: Vec<Option<f64>>,
}

/// A chart of values over epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    pub title: String,
    pub epochs: Vec<u64>,
    pub series: Vec<Series>,
    /// Whether the vertical axis begins at 0 even if all values are far above it.
    pub from_zero: bool,
}

impl LineChart {
    /// The chart as an `<svg>` element. `id` is unlike that of any other element on the page, and made of letters,
    /// digits and hyphens.
    pub fn svg(&self, id: &str) -> String {
        let vertical = Axis::around(self.values(), self.from_zero);
        let title = escape(&self.title);
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\">\n\
             <title id=\"{id}-title\">{title}</title>\n<desc id=\"{id}-desc\">{}</desc>\n\
             <text class=\"title\" x=\"4\" y=\"18\">{title}</text>\n",
            escape(&self.description())
        );
        self.draw_axes(&mut svg, &vertical);
        if self.series.len() > 1 {
            self.draw_legend(&mut svg);
        }
        for (number, series) in self.series.iter().enumerate() {
            self.draw_series(&mut svg, &vertical, series, number);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.series.iter().flat_map(|series| series.values.iter().copied().filter_map(usable))
    }

    /// What a curve does, for those who cannot see it.
    fn description(&self) -> String {
        let of = |series: &Series| {
            let points: Vec<(u64, f64)> = self.points(series).filter_map(|(epoch, y)| Some((epoch, y?))).collect();
            let (Some(first), Some(last)) = (points.first(), points.last()) else {
                return format!("{}: no values.", series.name);
            };
            let lowest = points.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
            let highest = points.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
            let at = |point: &(u64, f64)| format!("{} in epoch {}", figure(point.1), point.0);
            format!(
                "{}: from {} to {}, lowest {}, highest {}.",
                series.name,
                at(first),
                at(last),
                at(lowest),
                at(highest)
            )
        };
        self.series.iter().map(of).collect::<Vec<_>>().join(" ")
    }

    fn points<'a>(&'a self, series: &'a Series) -> impl Iterator<Item = (u64, Option<f64>)> + 'a {
        self.epochs.iter().copied().zip(series.values.iter().map(|&value| usable(value)))
    }

    /// Where an epoch is on the page.
    fn x(&self, epoch: u64) -> f64 {
        let (first, last) = self.first_and_last();
        let share = if last > first { (epoch - first) as f64 / (last - first) as f64 } else { 0.5 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn first_and_last(&self) -> (u64, u64) {
        (self.epochs.iter().copied().min().unwrap_or(0), self.epochs.iter().copied().max().unwrap_or(0))
    }

    fn draw_axes(&self, svg: &mut String, vertical: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in vertical.ticks() {
            let y = vertical.y(tick);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            let label = vertical.label(tick);
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>");
        for epoch in self.epoch_ticks() {
            let x = self.x(epoch);
            let _ = writeln!(svg, "<path class=\"axis\" d=\"M{x:.1} {bottom}v4\"/>");
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{epoch}</text>",
                bottom + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">epoch</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0
        );
    }

    /// Multiples of a round number, and the first epoch.
    fn epoch_ticks(&self) -> Vec<u64> {
        if self.epochs.is_empty() {
            return Vec::new();
        }
        let (first, last) = self.first_and_last();
        let step = (nice_step((last - first) as f64 / 6.0) as u64).max(1);
        let multiples = (first / step + 1..=last / step).map(|multiple| multiple * step);
        std::iter::once(first).chain(multiples.filter(|tick| 2 * (tick - first) >= step)).collect()
    }

    fn draw_legend(&self, svg: &mut String) {
        let mut right = WIDTH - RIGHT;
        for (number, series) in self.series.iter().enumerate().rev() {
            let (name, style) = (escape(&series.name), line_style(series, number));
            let _ = writeln!(svg, "<text class=\"tick\" x=\"{right:.1}\" y=\"18\" text-anchor=\"end\">{name}</text>");
            // Letters are about 7 units wide.
            let end = right - 7.0 * series.name.chars().count() as f64 - 6.0;
            let _ = writeln!(svg, "<path class=\"curve\" style=\"{style}\" d=\"M{:.1} 14H{end:.1}\"/>", end - 22.0);
            right = end - 36.0;
        }
    }

    fn draw_series(&self, svg: &mut String, vertical: &Axis, series: &Series, number: usize) {
        let style = line_style(series, number);
        let points: Vec<(u64, Option<f64>)> = self.points(series).collect();
        let runs = points.split(|(_, value)| value.is_none());
        let mut path = String::new();
        for run in runs.filter(|run| run.len() > 1) {
            for (place, (epoch, value)) in run.iter().enumerate() {
                let command = if place == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", self.x(*epoch), vertical.y(value.unwrap_or_default()));
            }
        }
        if !path.is_empty() {
            let _ = writeln!(svg, "<path class=\"curve\" style=\"{style}\" d=\"{path}\"/>");
        }
        let present = |place: usize| points.get(place).is_some_and(|(_, value)| value.is_some());
        for (place, &(epoch, value)) in points.iter().enumerate() {
            let alone = !present(place.wrapping_sub(1)) && !present(place + 1);
            if let Some(value) = value.filter(|_| alone || points.len() <= DOTS) {
                let _ = writeln!(
                    svg,
                    "<circle style=\"fill:{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{}, epoch {epoch}: {}</title></circle>",
                    series.colour.css(),
                    self.x(epoch),
                    vertical.y(value),
                    escape(&series.name),
                    figure(value)
                );
            }
        }
    }
}

/// The value, if it can be drawn.
fn usable(value: Option<f64>) -> Option<f64> {
    let [smallest, largest] = SIZES;
    value.filter(|value| value.abs() <= largest).map(|value| if value.abs() < smallest { 0.0 } else { value })
}

/// The first curve is whole and later ones are dashed, so that colour is not all that tells them apart.
pub(super) const DASHES: [&str; 6] = ["none", "7 3", "2 3", "9 3 2 3", "4 2", "14 4"];

fn line_style(series: &Series, number: usize) -> String {
    let dashes = DASHES[number % DASHES.len()];
    format!("stroke:{};stroke-dasharray:{dashes}", series.colour.css())
}

/// A vertical axis from `low` to `high` in steps of a round number, both multiples of it.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>, from_zero: bool) -> Self {
        let (mut low, mut high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if from_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        let size = low.abs().max(high.abs());
        if high - low <= 1e-9 * size {
            // One value alone: room on both sides of it.
            (low, high) = if size > 0.0 { (low - 0.1 * size, high + 0.1 * size) } else { (0.0, 1.0) };
        }
        let step = nice_step((high - low) / 4.0);
        // A value a rounding error past a tick is on it.
        Axis { low: (low / step + 1e-6).floor() * step, high: (high / step - 1e-6).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.step).round();
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(move |tick| (first + tick as f64) * self.step)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if tick == 0.0 {
            return "0".into();
        }
        if !(1e-3..1e6).contains(&largest) {
            let decimals = (tick.abs().log10().floor() - self.step.log10().floor()).clamp(0.0, 4.0) as usize;
            return scientific(tick, decimals);
        }
        let decimals = (-self.step.log10() - 1e-9).ceil().clamp(0.0, 9.0) as usize;
        format!("{tick:.decimals$}")
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(f64::MIN_POSITIVE).log10().floor());
    let share = step / power;
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| share <= factor * 1.000_001).unwrap_or(10.0);
    factor * power
}
