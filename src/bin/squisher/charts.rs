//! Charts as inline SVG. Text and axes take the page's colours; each mark carries a title for pointer and
//! screen reader.

use std::fmt::Write as _;

/// Text as it may stand in XML: names are data that strangers wrote.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The end of a name, where it is longer than there is room for.
fn shortened(text: &str, room: usize) -> String {
    let count = text.chars().count();
    if count <= room {
        return text.to_owned();
    }
    let tail: String = text.chars().skip(count - room + 1).collect();
    format!("…{tail}")
}

/// A colour of viridis at `t` in [0, 1], between eight of its points, and whether it is dark.
pub(crate) fn viridis(t: f64) -> ([u8; 3], bool) {
    const POINTS: [[f64; 3]; 8] = [
        [68.0, 1.0, 84.0],
        [70.0, 50.0, 127.0],
        [54.0, 92.0, 141.0],
        [39.0, 127.0, 142.0],
        [31.0, 161.0, 135.0],
        [74.0, 194.0, 109.0],
        [159.0, 218.0, 58.0],
        [253.0, 231.0, 37.0],
    ];
    let place = t.clamp(0.0, 1.0) * 7.0;
    let low = (place.floor() as usize).min(6);
    let part = place - low as f64;
    let mixed = |channel: usize| POINTS[low][channel] * (1.0 - part) + POINTS[low + 1][channel] * part;
    let rgb = [mixed(0), mixed(1), mixed(2)];
    let luminance = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
    (rgb.map(|channel| channel.round() as u8), luminance < 128.0)
}

/// A matrix with labels; `None` is an empty cell.
pub(crate) struct Heatmap {
    pub(crate) rows: Vec<String>,
    pub(crate) columns: Vec<String>,
    pub(crate) cells: Vec<Vec<Option<f64>>>,
    /// What a cell is coloured and printed by: its base-10 logarithm.
    pub(crate) log: bool,
    /// The values of the darkest and the brightest colour; the least and the greatest that are shown where
    /// there is none.
    pub(crate) range: Option<(f64, f64)>,
    /// Digits after the point of the printed values.
    pub(crate) digits: usize,
    pub(crate) title: String,
}

const ROW_LETTERS: usize = 36;
const COLUMN_LETTERS: usize = 28;

/// The colours of light and dark, and how text and marks take them: for a page as for a chart that stands alone.
pub(crate) const COLOURS: &str = include_str!("charts.css");

/// Width and height of a heatmap's cell in pixels.
const CELL: [usize; 2] = [58, 24];

/// Where a heatmap's cells and labels are, in pixels.
struct Grid {
    left: usize,
    top: usize,
    total_width: usize,
    total_height: usize,
}

impl Grid {
    fn cell(&self, row: usize, column: usize) -> [usize; 2] {
        [self.left + CELL[0] * column, self.top + CELL[1] * row]
    }

    fn column_label(&self, column: usize, name: &str) -> String {
        let (x, y) = (self.cell(0, column)[0] + CELL[0] / 2, self.top - 8);
        let (full, short) = (escape(name), escape(&shortened(name, COLUMN_LETTERS)));
        format!(
            "<text class='label' transform='translate({x},{y}) rotate(-45)'><title>{full}</title>{short}</text>"
        )
    }

    fn row_label(&self, row: usize, name: &str) -> String {
        let (x, y) = (self.left - 8, self.cell(row, 0)[1] + 16);
        let (full, short) = (escape(name), escape(&shortened(name, ROW_LETTERS)));
        format!("<text class='label' text-anchor='end' x='{x}' y='{y}'><title>{full}</title>{short}</text>")
    }
}

impl Heatmap {
    /// The chart as its own file, with its colours and a ground.
    pub(crate) fn file(&self) -> String {
        let chart = self.svg();
        let head = chart.find("</title>").map_or(0, |at| at + "</title>".len());
        let ground = "<rect width='100%' height='100%' style='fill:var(--paper)'/>";
        format!("{}<style>{COLOURS}</style>{ground}{}\n", &chart[..head], &chart[head..])
    }

    pub(crate) fn svg(&self) -> String {
        let grid = self.grid();
        let mut svg = open(grid.total_width, grid.total_height, &self.title);
        for (c, column) in self.columns.iter().enumerate() {
            svg.push_str(&grid.column_label(c, column));
        }
        let range = self.range();
        for (r, row) in self.rows.iter().enumerate() {
            svg.push_str(&grid.row_label(r, row));
            for (c, column) in self.columns.iter().enumerate() {
                if let Some(value) = self.cells[r][c] {
                    svg.push_str(&self.cell(grid.cell(r, c), value, range, row, column));
                }
            }
        }
        svg.push_str("</svg>");
        svg
    }

    /// What a cell is coloured and printed by.
    fn scaled(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The least and the largest of what cells are coloured by.
    fn range(&self) -> (f64, f64) {
        let shown = self.cells.iter().flatten().flatten().map(|&v| self.scaled(v)).filter(|v| v.is_finite());
        let ends = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        self.range.unwrap_or(ends)
    }

    /// Room for the longest label, at about seven pixels a letter; column labels lean at 45 degrees.
    fn grid(&self) -> Grid {
        let letters = |labels: &[String], most: usize| {
            labels.iter().map(|label| label.chars().count().min(most)).max().unwrap_or(0)
        };
        let left = 7 * letters(&self.rows, ROW_LETTERS) + 20;
        let lean = 5 * letters(&self.columns, COLUMN_LETTERS);
        let top = lean + 24;
        Grid {
            left,
            top,
            total_width: left + CELL[0] * self.columns.len() + lean + 20,
            total_height: top + CELL[1] * self.rows.len() + 10,
        }
    }

    fn cell(
        &self,
        [x, y]: [usize; 2],
        value: f64,
        (low, high): (f64, f64),
        row: &str,
        column: &str,
    ) -> String {
        let ([width, height], scaled) = (CELL, self.scaled(value));
        let t = if high > low { (scaled - low) / (high - low) } else { 0.5 };
        let ([r, g, b], dark) = viridis(if scaled.is_finite() { t } else { 0.0 });
        let ink = if dark { "#fff" } else { "#000" };
        let text = if scaled.is_finite() {
            format!("{scaled:.digits$}", digits = self.digits)
        } else {
            // Without a logarithm: a "0" would be that of a value of one.
            "zero".to_owned()
        };
        format!(
            "<g><title>{} {}: {value:.4e}</title><rect x='{x}' y='{y}' width='{}' height='{}' fill='rgb({r},{g},{b})'/>\
             <text class='value' fill='{ink}' text-anchor='middle' x='{}' y='{}'>{text}</text></g>",
            escape(row),
            escape(column),
            width - 1,
            height - 1,
            x + width / 2,
            y + 16
        )
    }
}

fn open(width: usize, height: usize, title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg role='img' aria-label='{title}' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
         xmlns='http://www.w3.org/2000/svg'><title>{title}</title>"
    )
}

/// The frame of a chart with two axes.
pub(crate) struct Axes {
    pub(crate) x: (f64, f64),
    pub(crate) y: (f64, f64),
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) title: String,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 14.0;

/// Letters that fit along an axis.
const X_LETTERS: usize = 76;
const Y_LETTERS: usize = 40;

impl Axes {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |v: f64, (low, high): (f64, f64)| if high > low { (v - low) / (high - low) } else { 0.5 };
        (LEFT + WIDTH * part(x, self.x), TOP + HEIGHT * (1.0 - part(y, self.y)))
    }

    /// The frame with about five ticks a side, and the marks inside.
    fn svg(&self, marks: &str) -> String {
        self.framed(marks, number)
    }

    fn framed(&self, marks: &str, number: impl Fn(f64) -> String) -> String {
        let mut svg = open((LEFT + WIDTH + 24.0) as usize, (TOP + HEIGHT + 54.0) as usize, &self.title);
        let _ = write!(svg, "<rect class='frame' x='{LEFT}' y='{TOP}' width='{WIDTH}' height='{HEIGHT}'/>");
        for tick in ticks(self.x) {
            let (x, _) = self.at(tick, self.y.0);
            let bottom = TOP + HEIGHT;
            let _ = write!(
                svg,
                "<line class='grid' x1='{x:.1}' x2='{x:.1}' y1='{TOP}' y2='{bottom}'/>\
                 <text class='label' text-anchor='middle' x='{x:.1}' y='{}'>{}</text>",
                bottom + 18.0,
                number(tick)
            );
        }
        for tick in ticks(self.y) {
            let (_, y) = self.at(self.x.0, tick);
            let _ = write!(
                svg,
                "<line class='grid' x1='{LEFT}' x2='{}' y1='{y:.1}' y2='{y:.1}'/>\
                 <text class='label' text-anchor='end' x='{}' y='{:.1}'>{}</text>",
                LEFT + WIDTH,
                LEFT - 6.0,
                y + 4.0,
                number(tick)
            );
        }
        svg.push_str(marks);
        let (middle, foot) = (LEFT + WIDTH / 2.0, TOP + HEIGHT + 42.0);
        let _ = write!(
            svg,
            "<text class='label' text-anchor='middle' x='{middle}' y='{foot}'>{}</text>\
             <text class='label' text-anchor='middle' transform='translate(14,{}) rotate(-90)'>{}</text></svg>",
            escape(&shortened(&self.x_label, X_LETTERS)),
            TOP + HEIGHT / 2.0,
            escape(&shortened(&self.y_label, Y_LETTERS))
        );
        svg
    }

    /// Upright bars from the axis: (left, right, height, title).
    pub(crate) fn bars(&self, bars: &[(f64, f64, f64, String)]) -> String {
        let mut marks = String::new();
        for (left, right, value, title) in bars {
            let (x0, y0) = self.at(*left, *value);
            let (x1, y1) = self.at(*right, self.y.0);
            let _ = write!(
                marks,
                "<rect class='bar' x='{x0:.1}' y='{y0:.1}' width='{:.1}' height='{:.1}'><title>{}</title></rect>",
                (x1 - x0 - 0.5).max(0.5),
                (y1 - y0).max(0.0),
                escape(title)
            );
        }
        self.svg(&marks)
    }

    /// A line through points.
    pub(crate) fn line(&self, points: &[(f64, f64)]) -> String {
        let path: Vec<String> =
            points.iter().map(|&(x, y)| self.at(x, y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.svg(&format!("<polyline class='line' points='{}'/>", path.join(" ")))
    }

    /// Lines (broken or not) and labelled points, where both axes are powers of ten.
    pub(crate) fn decades(&self, lines: &[(Vec<(f64, f64)>, bool)], marks: &[Mark]) -> String {
        let mut svg = String::new();
        for (points, broken) in lines {
            let path: Vec<String> =
                points.iter().map(|&(x, y)| self.at(x, y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let class = if *broken { "grid broken" } else { "line" };
            let _ = write!(svg, "<polyline class='{class}' points='{}'/>", path.join(" "));
        }
        let dots: Vec<(f64, f64)> = marks.iter().map(|mark| self.at(mark.at.0, mark.at.1)).collect();
        let mut taken: Vec<(f64, f64)> = Vec::new();
        for mark in marks {
            let (x, y) = self.at(mark.at.0, mark.at.1);
            let label = free_place((x + 6.0, y + 4.0), &taken, &dots);
            taken.push(label);
            let _ = write!(
                svg,
                "<g><title>{}</title><circle class='dot' cx='{x:.1}' cy='{y:.1}' r='3.5'/>\
                 <text class='label' x='{:.1}' y='{:.1}'>{}</text></g>",
                escape(&mark.title),
                label.0,
                label.1,
                escape(&mark.label)
            );
        }
        self.framed(&svg, |power| number(10.0_f64.powf(power)))
    }

    /// Points.
    pub(crate) fn scatter(&self, points: &[(f64, f64)]) -> String {
        let mut marks = String::new();
        for &(x, y) in points {
            let (x, y) = self.at(x, y);
            let _ = write!(marks, "<circle class='point' cx='{x:.1}' cy='{y:.1}' r='1.6'/>");
        }
        self.svg(&marks)
    }
}

/// A point with a label beside it.
pub(crate) struct Mark {
    pub(crate) at: (f64, f64),
    pub(crate) label: String,
    pub(crate) title: String,
}

/// A place for a label of two digits near where it is wanted, on no other label and no dot: beside its own,
/// else further to the right.
fn free_place(wanted: (f64, f64), labels: &[(f64, f64)], dots: &[(f64, f64)]) -> (f64, f64) {
    let meets = |(x, y): (f64, f64)| {
        let on_label = |other: &(f64, f64)| (x - other.0).abs() < 16.0 && (y - other.1).abs() < 11.0;
        let on_dot = |dot: &(f64, f64)| (-4.0..18.0).contains(&(dot.0 - x)) && (y - 4.0 - dot.1).abs() < 8.0;
        labels.iter().any(on_label) || dots.iter().any(on_dot)
    };
    let mut place = wanted;
    while meets(place) {
        place.0 += 4.0;
    }
    place
}

/// Round numbers in a range, about five.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    if high <= low {
        return vec![low];
    }
    let raw = (high - low) / 5.0;
    let unit = 10.0_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|&s| s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn number(value: f64) -> String {
    if value != 0.0 && (value.abs() >= 1e5 || value.abs() < 1e-3) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Horizontal bars with labels: (name, share of 1, title).
pub(crate) fn shares(title: &str, rows: &[(String, f64, String)]) -> String {
    let (left, width, height) = (300, 420, 20);
    let mut svg = open(left + width + 90, height * rows.len() + 10, title);
    for (i, (name, share, tip)) in rows.iter().enumerate() {
        let y = height * i + 2;
        let _ = write!(
            svg,
            "<g><title>{tip}</title><text class='label' text-anchor='end' x='{}' y='{}'>{}</text>\
             <rect class='track' x='{left}' y='{y}' width='{width}' height='{}'/>\
             <rect class='bar' x='{left}' y='{y}' width='{:.1}' height='{}'/>\
             <text class='label' x='{}' y='{}'>{:.2} %</text></g>",
            left - 8,
            y + 13,
            escape(&shortened(name, 42)),
            height - 4,
            width as f64 * share.clamp(0.0, 1.0),
            height - 4,
            left + width + 8,
            y + 13,
            100.0 * share,
            tip = escape(tip),
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_element() {
        assert_eq!(escape("<script>&\"'\u{1b}"), "&lt;script&gt;&amp;&quot;&#39;\u{fffd}");
    }

    #[test]
    fn values_stand_out_from_their_cells() {
        assert!(viridis(0.0).1, "white on the darkest");
        assert!(!viridis(1.0).1, "black on the brightest");
    }

    #[test]
    fn a_colour_means_the_same_in_two_maps_of_one_range() {
        let cell = |cells: Vec<Option<f64>>, range| {
            let names: Vec<String> = cells.iter().map(|_| "n".to_owned()).collect();
            let map = Heatmap {
                rows: vec!["r".into()],
                columns: names,
                cells: vec![cells],
                log: false,
                range,
                digits: 2,
                title: "t".into(),
            };
            let svg = map.svg();
            svg.split("fill='rgb(").nth(1).and_then(|rest| rest.split(')').next()).expect("a cell").to_owned()
        };
        let (one, other) = (vec![Some(0.9), Some(0.8)], vec![Some(0.9), Some(0.0)]);
        assert_ne!(cell(one.clone(), None), cell(vec![Some(0.9), Some(1.0)], None), "by what is shown");
        assert_eq!(cell(one, Some((0.0, 1.0))), cell(other, Some((0.0, 1.0))));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0)), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks((-12.3, -4.1)), [-12.0, -10.0, -8.0, -6.0]);
        assert_eq!(ticks((3.0, 3.0)), [3.0]);
    }
}
