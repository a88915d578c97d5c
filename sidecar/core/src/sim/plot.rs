//! Line charts as SVG, written by hand: a title, axes, lines, a legend.
//!
//! Not here: the numbers.

use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;

/// Most lines that a legend has room for; the rest is drawn without being named.
const LEGEND_MAX: usize = 14;

/// Told apart by most eyes, colour-blind ones included (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000",
];

/// One chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What goes to the right, with its unit.
    pub x: &'static str,
    /// What goes up, with its unit.
    pub y: &'static str,
    /// The lines, each with its name.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// Charts below one another as one SVG document.
pub fn svg(charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, chart) in charts.iter().enumerate() {
        let down = HEIGHT * i as f64;
        let _ = writeln!(text, "<g transform=\"translate(0 {down})\">");
        draw(chart, &mut text);
        text.push_str("</g>\n");
    }
    text.push_str("</svg>\n");
    text
}

fn draw(chart: &Chart, text: &mut String) {
    let points = || chart.lines.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0_f64, f64::max);
    let (x_step, x_top) = scale(most(|p| p.0));
    let (y_step, y_top) = scale(most(|p| p.1));
    let (x_axis, y_axis) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let x_at = |x: f64| LEFT + x / x_top * (y_axis - LEFT);
    let y_at = |y: f64| x_axis - y / y_top * (x_axis - TOP);
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"16\" font-size=\"14\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{}</text>\n\
         <text x=\"{y_axis}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">{}</text>",
        escaped(&chart.title),
        TOP - 6.0,
        escaped(chart.y),
        HEIGHT - 4.0,
        escaped(chart.x),
    );
    for (value, y) in ticks(y_step, y_top).map(|value| (value, y_at(value))) {
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{y_axis}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(value),
        );
    }
    for (value, x) in ticks(x_step, x_top).map(|value| (value, x_at(value))) {
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            x_axis + 15.0,
            short(value),
        );
    }
    for (i, (name, points)) in chart.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            path.join(" ")
        );
        if i < LEGEND_MAX {
            let (x, y) = (y_axis + 12.0, TOP + 16.0 * i as f64);
            let _ = writeln!(
                text,
                "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                x + 16.0,
                x + 22.0,
                y + 4.0,
                escaped(name),
            );
        }
    }
}

/// Distance of the ticks and the end of an axis for values up to `most`: 1, 2 or 5 times a power of ten.
fn scale(most: f64) -> (f64, f64) {
    if most <= 0.0 || !most.is_finite() {
        return (1.0, 1.0);
    }
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    let step = step.into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    (step, (most / step).ceil() * step)
}

fn ticks(step: f64, top: f64) -> impl Iterator<Item = f64> {
    let count = (top / step).round() as u32;
    (0..=count).map(move |i| f64::from(i) * step)
}

fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_a_round_number_and_every_line_is_named() {
        assert_eq!(scale(43.0), (10.0, 50.0));
        assert_eq!(scale(0.9), (0.2, 1.0));
        assert_eq!(scale(0.0), (1.0, 1.0));
        let chart = Chart {
            title: "a < b".to_owned(),
            x: "s",
            y: "ms",
            lines: vec![("one & two".to_owned(), vec![(0.0, 1.0), (1.0, 2.0)])],
        };
        let drawn = svg(&[chart.clone(), chart]);
        assert_eq!(drawn.matches("<polyline").count(), 2);
        assert!(drawn.contains("a &lt; b") && drawn.contains("one &amp; two"));
        assert!(drawn.contains("viewBox=\"0 0 900 600\"") && drawn.ends_with("</svg>\n"));
    }
}
