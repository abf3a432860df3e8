//! The picture: time and bus bandwidth over size, both logarithmic, as SVG.

use std::fmt::Write;

use crate::scale::Scale;
use crate::series::{Series, names};

/// Pixels of the whole picture, from left to right.
const WIDTH: f64 = 1200.0;
/// Where the panels' frames begin and end, from the top.
const TOP: f64 = 92.0;
const BOTTOM: f64 = 452.0;
/// The same of each panel, from the left.
const LEFT_PANEL: (f64, f64) = (84.0, 584.0);
const RIGHT_PANEL: (f64, f64) = (676.0, 1176.0);
/// Where the legend begins, and the height of one of its rows.
const LEGEND: f64 = 524.0;
const LEGEND_ROW: f64 = 24.0;
/// Of one character of the legend, about: no font is at hand to ask.
const CHARACTER: f64 = 7.0;

/// Told apart by most people who do not see all colours (Okabe and Ito, without the yellow).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333"];

/// Outlines around (0, 0), beside the colours and not in step with them.
const MARKERS: [&str; 8] = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.2L5 3.8H-5z",
    "M0 -5.8L5.8 0L0 5.8L-5.8 0z",
    "M0 5.2L5 -3.8H-5z",
    "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
    "M-6 -2.6h12v5.2h-12z",
];

/// Which of a point's figures a panel shows.
struct Panel {
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    frame: (f64, f64),
    value: fn(&crate::series::Point) -> f64,
}

const PANELS: [Panel; 2] = [
    Panel {
        id: "time",
        title: "Time of a call (lower is better)",
        unit: "time (\u{b5}s)",
        frame: LEFT_PANEL,
        value: |point| point.time,
    },
    Panel {
        id: "bandwidth",
        title: "Bus bandwidth (higher is better)",
        unit: "bus bandwidth (GB/s)",
        frame: RIGHT_PANEL,
        value: |point| point.busbw,
    },
];

/// A picture of these curves, with a line about where they were measured.
pub fn draw(all: &[Series], about: &str) -> String {
    let (names, common) = names(all);
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64;
    let column = widest * CHARACTER + 64.0;
    let columns = ((RIGHT_PANEL.1 - LEFT_PANEL.0) / column).floor().max(1.0) as usize;
    let height = LEGEND + names.len().div_ceil(columns) as f64 * LEGEND_ROW;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" \
         font-size=\"12\" fill=\"#222222\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        title = escape(&common)
    );
    text(&mut svg, (LEFT_PANEL.0, 32.0), "font-size=\"19\" font-weight=\"bold\"", &common);
    text(&mut svg, (LEFT_PANEL.0, 52.0), "fill=\"#666666\"", about);
    for panel in &PANELS {
        draw_panel(&mut svg, panel, all);
    }
    for (number, name) in names.iter().enumerate() {
        let x = LEFT_PANEL.0 + (number % columns) as f64 * column;
        let y = LEGEND + (number / columns) as f64 * LEGEND_ROW;
        let line = [(x, y - 4.0), (x + 36.0, y - 4.0)];
        polyline(&mut svg, number, &line);
        marker(&mut svg, number, (x + 18.0, y - 4.0), name);
        text(&mut svg, (x + 44.0, y), "font-size=\"13\"", name);
    }
    svg + "</svg>\n"
}

/// Frame, lines, labels and curves of one panel.
fn draw_panel(svg: &mut String, panel: &Panel, all: &[Series]) {
    let (left, right) = panel.frame;
    let _ = writeln!(svg, "<g id=\"{}\">", panel.id);
    text(svg, (left, TOP - 12.0), "font-size=\"14\" font-weight=\"bold\"", panel.title);
    // A logarithmic axis has no nothing: a group of one has no bus bandwidth.
    let curves: Vec<Vec<(f64, f64)>> = all
        .iter()
        .map(|series| {
            let points =
                series.points.iter().map(|point| (point.bytes as f64, (panel.value)(point)));
            points.filter(|&(_, value)| value > 0.0).collect()
        })
        .collect();
    let middle = (left + right) / 2.0;
    if curves.iter().all(Vec::is_empty) {
        frame(svg, panel.frame);
        text(svg, (middle, (TOP + BOTTOM) / 2.0), "text-anchor=\"middle\"", "nothing to show");
        svg.push_str("</g>\n");
        return;
    }
    let points = || curves.iter().flatten();
    let x = Scale::bytes(points().map(|point| point.0), (left, right));
    let y = Scale::decades(points().map(|point| point.1), (BOTTOM, TOP));
    for tick in &x.ticks {
        let at = x.pixel(tick.value);
        grid(svg, (at, TOP), (at, BOTTOM), true);
        let label = tick.label.as_deref().unwrap_or_default();
        text(svg, (at, BOTTOM + 18.0), "text-anchor=\"middle\"", label);
    }
    for tick in &y.ticks {
        let at = y.pixel(tick.value);
        grid(svg, (left, at), (right, at), tick.label.is_some());
        let label = tick.label.as_deref().unwrap_or_default();
        text(svg, (left - 8.0, at + 4.0), "text-anchor=\"end\"", label);
    }
    frame(svg, panel.frame);
    text(svg, (middle, BOTTOM + 40.0), "text-anchor=\"middle\" font-size=\"13\"", "size (bytes)");
    let (unit_x, unit_y) = (left - 62.0, (TOP + BOTTOM) / 2.0);
    let turned = format!(
        "text-anchor=\"middle\" font-size=\"13\" transform=\"rotate(-90 {unit_x} {unit_y})\""
    );
    text(svg, (unit_x, unit_y), &turned, panel.unit);
    for (number, curve) in curves.iter().enumerate() {
        let pixels: Vec<(f64, f64)> =
            curve.iter().map(|point| (x.pixel(point.0), y.pixel(point.1))).collect();
        polyline(svg, number, &pixels);
        for (&pixel, point) in pixels.iter().zip(curve) {
            marker(svg, number, pixel, &format!("{} bytes: {:.4}", point.0, point.1));
        }
    }
    svg.push_str("</g>\n");
}

fn frame(svg: &mut String, (left, right): (f64, f64)) {
    let (width, height) = (right - left, BOTTOM - TOP);
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#888888\"/>"
    );
}

/// A line across a panel, fainter without a label.
fn grid(svg: &mut String, from: (f64, f64), to: (f64, f64), labelled: bool) {
    let stroke = if labelled { "#d8d8d8" } else { "#f0f0f0" };
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"{stroke}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// The line of curve `number`; after every colour was used, dashed.
fn polyline(svg: &mut String, number: usize, pixels: &[(f64, f64)]) {
    let colour = COLOURS[number % COLOURS.len()];
    let dash =
        ["", " stroke-dasharray=\"7 4\"", " stroke-dasharray=\"2 3\""][number / COLOURS.len() % 3];
    let points: Vec<String> = pixels.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
         stroke-linejoin=\"round\"{dash}/>",
        points.join(" ")
    );
}

/// A mark of curve `number`, which tells more under the mouse.
fn marker(svg: &mut String, number: usize, (x, y): (f64, f64), tells: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"{}\" transform=\"translate({x:.1} {y:.1})\" fill=\"{}\" stroke=\"#ffffff\" \
         stroke-width=\"0.8\"><title>{}</title></path>",
        MARKERS[number % MARKERS.len()],
        COLOURS[number % COLOURS.len()],
        escape(tells)
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, content: &str) {
    let content = escape(content);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>");
}

/// Text that may hold anything, as XML; what XML cannot hold becomes a question mark.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\0'..'\t' | '\u{b}' | '\u{c}' | '\u{e}'..' ' | '\u{fffe}' | '\u{ffff}' => {
                escaped.push('?')
            }
            _ => escaped.push(c),
        }
    }
    escaped
}
