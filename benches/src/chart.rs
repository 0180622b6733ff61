//! Charts for reports: SVG and HTML as text, coloured by [`STYLE`].

use std::fmt::Write as _;

/// What the charts need of a page's style sheet. Follows the reader's light or dark scheme.
pub const STYLE: &str = "\
:root{color-scheme:light dark;--ground:#fff;--ink:#1d2430;--faint:#5b6472;--grid:#dde1e7;\
--s0:#1f6fd6;--s1:#d9610f;--s2:#23884a;--s3:#8a4fc7}\
@media(prefers-color-scheme:dark){:root{--ground:#14181f;--ink:#e7eaf0;--faint:#a2abb9;--grid:#333b47;\
--s0:#6fa8ff;--s1:#ffa066;--s2:#62c98a;--s3:#c79bf2}}\
.chart{margin:0 0 2rem}.chart figcaption{font-weight:600;margin-bottom:.3rem}\
.chart svg{display:block;width:100%;height:auto}.chart text{font:12px system-ui,sans-serif;fill:var(--faint)}\
.chart .name{fill:var(--ink)}.chart .grid{stroke:var(--grid);stroke-width:1}\
.chart path{fill:none;stroke-width:2;stroke-linejoin:round}\
.chart .s0{stroke:var(--s0)}.chart .s1{stroke:var(--s1);stroke-dasharray:7 4}\
.chart .s2{stroke:var(--s2);stroke-dasharray:2 3}.chart .s3{stroke:var(--s3);stroke-dasharray:10 3 2 3}\
.chart .bar{fill:var(--s0)}\
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:0;padding:0;list-style:none;font-size:.85rem}\
.legend svg{display:inline-block;width:32px;height:8px;margin-right:.4rem;vertical-align:middle}";

/// Lines of different looks; more are drawn like the first ones again.
const LOOKS: usize = 4;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 48.0;
/// About what a character of 12 px takes.
const CHARACTER: f64 = 7.0;

/// How values are placed along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero, or the smallest value if it is negative.
    Linear,
    /// By powers of ten. What is not above zero is left out.
    Log,
    /// Shares from 0 up to, but not including, 1: 90 %, 99 %, 99.9 % are equally far from each other.
    Percentile,
}

/// One axis of a line chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis<'a> {
    /// What it shows, and in which unit.
    pub label: &'a str,
    /// How.
    pub scale: Scale,
}

/// A line of a line chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// As the legend has it.
    pub name: &'a str,
    /// In the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A line chart as an HTML `figure`.
pub fn lines(title: &str, x: Axis<'_>, y: Axis<'_>, lines: &[Line<'_>]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Span::of(x.scale, points().map(|point| point.0));
    let up = Span::of(y.scale, points().map(|point| point.1));
    let place_x = |value| across.place(value).map(|share| LEFT + share * (WIDTH - LEFT - RIGHT));
    let place_y = |value| up.place(value).map(|share| HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM));

    let mut svg = open_svg(title, HEIGHT);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for (value, text) in across.ticks() {
        let Some(at) = place_x(value) else { continue };
        push(&mut svg, format_args!("<line class='grid' x1='{at:.1}' y1='{TOP}' x2='{at:.1}' y2='{bottom}'/>"));
        push(&mut svg, format_args!("<text x='{at:.1}' y='{:.1}' text-anchor='middle'>{text}</text>", bottom + 17.0));
    }
    for (value, text) in up.ticks() {
        let Some(at) = place_y(value) else { continue };
        push(&mut svg, format_args!("<line class='grid' x1='{LEFT}' y1='{at:.1}' x2='{right}' y2='{at:.1}'/>"));
        let (x, y) = (LEFT - 8.0, at + 4.0);
        push(&mut svg, format_args!("<text x='{x}' y='{y:.1}' text-anchor='end'>{text}</text>"));
    }
    let middle = (LEFT + right) / 2.0;
    let label = escape(x.label);
    push(&mut svg, format_args!("<text x='{middle}' y='{:.1}' text-anchor='middle'>{label}</text>", HEIGHT - 8.0));
    let (middle, label) = ((TOP + bottom) / 2.0, escape(y.label));
    push(&mut svg, format_args!("<text transform='rotate(-90 14 {middle})' x='14' y='{middle}' text-anchor='middle'>"));
    push(&mut svg, format_args!("{label}</text>"));
    for (number, line) in lines.iter().enumerate() {
        let placed = line.points.iter().filter_map(|(x, y)| Some((place_x(*x)?, place_y(*y)?)));
        let mut path = String::new();
        for (x, y) in placed {
            let step = if path.is_empty() { 'M' } else { 'L' };
            push(&mut path, format_args!("{step}{x:.1} {y:.1}"));
        }
        push(&mut svg, format_args!("<path class='s{}' d='{path}'/>", number % LOOKS));
    }
    svg += "</svg>";
    figure(title, &legend(lines), &svg)
}

/// A chart of horizontal bars as an HTML `figure`: label, value, and what is written at the bar's end, such as `1.9 GB/s`.
pub fn bars(title: &str, bars: &[(&str, f64, &str)]) -> String {
    const ROW: f64 = 30.0;
    const LONGEST_LABEL: usize = 40;
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) as f64 * CHARACTER;
    let left = widest(&mut bars.iter().map(|bar| bar.0.chars().count().min(LONGEST_LABEL))) + 16.0;
    let right = widest(&mut bars.iter().map(|bar| bar.2.chars().count())) + 16.0;
    let bottom = ROW * bars.len() as f64 + 6.0;
    let span = Span::of(Scale::Linear, bars.iter().map(|bar| bar.1));
    let place = |value| left + span.place(value).unwrap_or(0.0) * (WIDTH - left - right);

    let mut svg = open_svg(title, bottom + 24.0);
    for (value, text) in span.ticks() {
        let at = place(value);
        push(&mut svg, format_args!("<line class='grid' x1='{at:.1}' y1='0' x2='{at:.1}' y2='{bottom}'/>"));
        push(&mut svg, format_args!("<text x='{at:.1}' y='{:.1}' text-anchor='middle'>{text}</text>", bottom + 16.0));
    }
    for (number, (label, value, text)) in bars.iter().enumerate() {
        let top = ROW * number as f64 + 6.0;
        let base = top + 14.0;
        let mut label: String = label.chars().collect();
        if let Some((cut, _)) = label.char_indices().nth(LONGEST_LABEL) {
            label.truncate(cut);
            label.pop();
            label.push('…');
        }
        let (from, to) = (place(value.min(0.0)), place(value.max(0.0)));
        let width = (to - from).max(1.0);
        let (label, text) = (escape(&label), escape(text));
        push(
            &mut svg,
            format_args!("<text class='name' x='{:.1}' y='{base}' text-anchor='end'>{label}</text>", left - 8.0),
        );
        push(
            &mut svg,
            format_args!("<rect class='bar' x='{from:.1}' y='{top}' width='{width:.1}' height='20' rx='2'/>"),
        );
        push(&mut svg, format_args!("<text class='name' x='{:.1}' y='{base}'>{text}</text>", to + 6.0));
    }
    svg += "</svg>";
    figure(title, "", &svg)
}

/// Text as it may stand in HTML, in an attribute too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn push(to: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = to.write_fmt(text);
}

fn open_svg(title: &str, height: f64) -> String {
    format!("<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{}'>", escape(title))
}

fn figure(title: &str, legend: &str, svg: &str) -> String {
    format!("<figure class='chart'><figcaption>{}</figcaption>{legend}{svg}</figure>\n", escape(title))
}

fn legend(lines: &[Line<'_>]) -> String {
    let entry = |(number, line): (usize, &Line<'_>)| {
        let sample = format!("<svg viewBox='0 0 32 8'><path class='s{}' d='M0 4L32 4'/></svg>", number % LOOKS);
        format!("<li>{sample}{}</li>", escape(line.name))
    };
    format!("<ul class='legend'>{}</ul>", lines.iter().enumerate().map(entry).collect::<String>())
}

/// The values of an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    scale: Scale,
    /// Of what `project` makes of the values.
    low: f64,
    high: f64,
}

impl Span {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let placed = values.filter_map(|value| project(scale, value));
        let bounds = placed.fold(None, |bounds: Option<(f64, f64)>, value| {
            let (low, high) = bounds.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        });
        let (low, high) = bounds.unwrap_or((0.0, 1.0));
        let (low, high) = match scale {
            Scale::Linear => (low.min(0.0), high.max(0.0)),
            Scale::Log => (low.floor(), high.ceil()),
            Scale::Percentile => (0.0, high.max(1.0)),
        };
        let high = if high > low { high } else { low + 1.0 };
        if scale == Scale::Linear {
            let step = step(high - low);
            return Self { scale, low: (low / step).floor() * step, high: (high / step - 1e-9).ceil() * step };
        }
        Self { scale, low, high }
    }

    /// Where a value is between the ends, from 0 to 1.
    fn place(&self, value: f64) -> Option<f64> {
        Some((project(self.scale, value)? - self.low) / (self.high - self.low))
    }

    /// Values to be marked, with their texts.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high - self.low);
                let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
                let count = ((self.high - self.low) / step).round() as u32;
                let value = |number| self.low + f64::from(number) * step;
                (0..=count).map(|number| (value(number), format!("{:.digits$}", value(number)))).collect()
            }
            Scale::Log => {
                let powers = self.low as i32..=self.high as i32;
                let text = |power: i32| format!("{:.*}", (-power).max(0) as usize, 10_f64.powi(power));
                powers.map(|power| (10_f64.powi(power), text(power))).collect()
            }
            Scale::Percentile => {
                let nines = |count: i32| 1.0 - 10_f64.powi(-count);
                let text = |count: i32| format!("{:.*}%", (count - 2).max(0) as usize, nines(count) * 100.0);
                let all = (1..=self.high as i32).map(|count| (nines(count), text(count)));
                [(0.0, "0%".to_owned()), (0.5, "50%".to_owned())].into_iter().chain(all).collect()
            }
        }
    }
}

/// Where a value lies on an axis on which distances are equal.
fn project(scale: Scale, value: f64) -> Option<f64> {
    let placed = match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
        Scale::Percentile => -(1.0 - value).log10(),
    };
    placed.is_finite().then_some(placed)
}

/// 1, 2 or 5 times a power of ten, of which about five make up the length.
fn step(length: f64) -> f64 {
    let rough = length / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(scale: Scale, values: &[f64]) -> Vec<String> {
        Span::of(scale, values.iter().copied()).ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(texts(Scale::Linear, &[0.3, 2.31]), ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(texts(Scale::Linear, &[480.0]), ["0", "100", "200", "300", "400", "500"]);
        assert_eq!(texts(Scale::Log, &[0.03, 40.0]), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(texts(Scale::Percentile, &[0.5, 0.99995]), ["0%", "50%", "90%", "99%", "99.9%", "99.99%"]);
    }

    #[test]
    fn charts_of_nothing_are_charts() {
        let axis = |scale| Axis { label: "x", scale };
        for scale in [Scale::Linear, Scale::Log, Scale::Percentile] {
            let text = lines("none", axis(scale), axis(scale), &[Line { name: "a", points: Vec::new() }]);
            assert!(text.contains("d=''") && !text.contains("NaN"), "{text}");
        }
        assert!(!bars("none", &[]).contains("NaN"));
        assert!(!bars("zero", &[("a", 0.0, "0")]).contains("NaN"));
    }

    #[test]
    fn names_cannot_break_the_page() {
        let text = bars("<b>", &[("a&\"'<i>", 1.0, "<u>")]);
        for bad in ["<b>", "<i>", "<u>"] {
            assert!(!text.contains(bad), "{text}");
        }
    }

    proptest! {
        #[test]
        fn all_values_lie_within_the_axis_and_ticks_are_few(
            values in prop::collection::vec(-1e9_f64..1e9, 1..20), log: bool
        ) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let span = Span::of(scale, values.iter().copied());
            for value in values {
                prop_assert!(span.place(value).is_none_or(|at| (-1e-9..=1.0 + 1e-9).contains(&at)));
            }
            prop_assert!((2..=30).contains(&span.ticks().len()));
        }
    }
}
