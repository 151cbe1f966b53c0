//! The page: one HTML file with everything in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use squisher::bench::Record;
use squisher::checkpoint::Statistics;

use super::data::{Agreement, Input, Kind, TOP};
use super::similarity::Similarity;
use super::{names, roofline};
use crate::charts::{Axes, COLOURS, Heatmap, escape, shares};
use crate::table::count;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1.5rem 0 .3rem}
table{border-collapse:collapse}th,td{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:.5rem 0 1rem;overflow-x:auto}figcaption{color:var(--soft);max-width:46rem}";

/// The whole page.
pub(super) fn page(
    inputs: &[Input],
    similarity: Option<&Similarity>,
    agreement: Option<&Agreement>,
    records: &[Record],
) -> String {
    let mut body = String::new();
    for input in inputs {
        let _ = write!(body, "<section><h2>{}</h2>", escape(&input.title));
        body.push_str(&metadata(input));
        match &input.kind {
            Kind::Fisher(found) => body.push_str(&fisher(input, found)),
            Kind::Mask(kept) => body.push_str(&mask(input, kept)),
        }
        body.push_str("</section>");
    }
    body.extend(similarity.map(Similarity::section));
    if let Some(agreement) = agreement {
        body.push_str(&scatter(agreement));
    }
    body.extend(records.iter().map(roofline::section));
    format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'><title>squisher report</title>\
         <style>{COLOURS}
{STYLE}</style></head><body><h1>squisher report</h1>{body}</body></html>\n"
    )
}

fn metadata(input: &Input) -> String {
    let said = input.checkpoint.metadata().iter().filter(|(key, _)| key.starts_with("squisher."));
    let rows: String = said
        .map(|(key, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(key), escape(value)))
        .collect();
    if rows.is_empty() {
        String::new()
    } else {
        format!("<details><summary>metadata</summary><table>{rows}</table></details>")
    }
}

pub(super) fn figure(svg: &str, caption: &str) -> String {
    format!("<figure>{svg}<figcaption>{caption}</figcaption></figure>")
}

fn fisher(input: &Input, found: &Statistics) -> String {
    let total = &found.total;
    let number = |value: Option<f32>| value.map_or("-".to_owned(), |v| format!("{v:.4e}"));
    let mut html = String::from("<table>");
    let mut row = |name: &str, value: String| {
        let _ = write!(html, "<tr><th>{name}</th><td class='n'>{value}</td></tr>");
    };
    row("elements", count(total.elements));
    row("zero", format!("{} ({:.2} %)", count(total.zeros), percent(total.zeros, total.elements)));
    row("mean", total.mean().map_or("-".to_owned(), |mean| format!("{mean:.4e}")));
    row("smallest, largest", format!("{}, {}", number(total.min), number(total.max)));
    if let Some(top) = found.top {
        row(&format!("the top {} % hold", 100.0 * TOP), format!("{:.2} % of the sum", 100.0 * top.share));
    }
    html.push_str("</table>");
    html.push_str(&figure(
        &heatmap(input, found).svg(),
        "Mean of each tensor, as log10: which layer and which module hold the mass. Tensors that are zero everywhere have no logarithm.",
    ));
    html.push_str(&figure(&histogram(found), "How the values are distributed, zeros left out."));
    html.push_str(&figure(
        &cumulative(found),
        "How much of the sum the largest hold: a curve that rises at once says that few parameters matter. From bins of \
         1/128 of a value.",
    ));
    html
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn heatmap(input: &Input, found: &Statistics) -> Heatmap {
    let mut cells: BTreeMap<(String, String), f64> = BTreeMap::new();
    for (place, summary) in &found.tensors {
        if let Some(mean) = summary.mean() {
            cells.insert(names::split(&input.checkpoint.tensors()[*place].name), mean);
        }
    }
    let mut rows: Vec<String> = cells.keys().map(|(layer, _)| layer.clone()).collect();
    let mut columns: Vec<String> = cells.keys().map(|(_, module)| module.clone()).collect();
    for list in [&mut rows, &mut columns] {
        list.sort_by(|a, b| names::by_number(a, b));
        list.dedup();
    }
    let cell = |row: &String, column: &String| cells.get(&(row.clone(), column.clone())).copied();
    let cells = rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()).collect();
    Heatmap {
        rows,
        columns,
        cells,
        log: true,
        range: None,
        digits: 2,
        title: format!("mean Fisher by layer and module of {}", input.title),
    }
}

/// Bars of a quarter of a decade.
fn histogram(found: &Statistics) -> String {
    const PER_DECADE: f64 = 4.0;
    let mut bars: BTreeMap<i64, u64> = BTreeMap::new();
    for &(value, number) in found.histogram.iter().filter(|(value, _)| *value > 0.0) {
        *bars.entry((f64::from(value).log10() * PER_DECADE).floor() as i64).or_default() += number;
    }
    let (Some((&first, _)), Some((&last, _))) = (bars.first_key_value(), bars.last_key_value()) else {
        return "<p>All values are zero.</p>".to_owned();
    };
    let highest = bars.values().copied().max().unwrap_or(1);
    let edge = |bar: i64| bar as f64 / PER_DECADE;
    let axes = Axes {
        x: (edge(first), edge(last + 1)),
        y: (0.0, highest as f64),
        x_label: "log10 of the value".into(),
        y_label: "parameters".into(),
        title: "histogram of the values".into(),
    };
    let bars: Vec<_> = bars
        .into_iter()
        .map(|(bar, number)| {
            let title = format!("10^{:.2} to 10^{:.2}: {}", edge(bar), edge(bar + 1), count(number));
            (edge(bar), edge(bar + 1), number as f64, title)
        })
        .collect();
    axes.bars(&bars)
}

/// Share of the sum against the share of parameters, the latter as a logarithm.
fn cumulative(found: &Statistics) -> String {
    let all = found.total.elements.max(1) as f64;
    let middle = |value: f32| f64::from(value) * (1.0 + 1.0 / 256.0);
    let sum: f64 = found.histogram.iter().map(|&(value, number)| middle(value) * number as f64).sum();
    let least = (1.0 / all).log10().min(-1.0);
    let axes = Axes {
        x: (least, 0.0),
        y: (0.0, 1.0),
        x_label: "log10 of the share of parameters, largest first".into(),
        y_label: "share of the sum".into(),
        title: "cumulative mass".into(),
    };
    let (mut parameters, mut mass) = (0.0, 0.0);
    let mut points = vec![(least, 0.0)];
    for &(value, number) in found.histogram.iter().rev() {
        parameters += number as f64;
        mass += middle(value) * number as f64;
        points.push(((parameters / all).log10().max(least), if sum > 0.0 { mass / sum } else { 0.0 }));
    }
    axes.line(&thinned(points))
}

/// At most about a thousand points: a screen shows no more.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(1000).max(1);
    let last = points.last().copied();
    points.into_iter().step_by(stride).chain(last).collect()
}

fn mask(input: &Input, kept: &[(usize, u64, u64)]) -> String {
    let (elements, ones) = kept.iter().fold((0, 0), |(e, k), tensor| (e + tensor.1, k + tensor.2));
    let mut rows: Vec<(String, f64, String)> = kept
        .iter()
        .filter(|(_, elements, _)| *elements > 0)
        .map(|&(place, elements, kept)| {
            let name = input.checkpoint.tensors()[place].name.clone();
            let title = format!("{name}: {} of {} kept", count(kept), count(elements));
            (name, kept as f64 / elements as f64, title)
        })
        .collect();
    rows.sort_by(|a, b| names::by_number(&a.0, &b.0));
    let summary = format!(
        "<p>{} of {} elements kept ({:.2} %).</p>",
        count(ones),
        count(elements),
        percent(ones, elements)
    );
    summary + &figure(&shares("share kept by tensor", &rows), "Share of each tensor that is kept.")
}

fn scatter(agreement: &Agreement) -> String {
    let [a, b] = &agreement.titles;
    let logs: Vec<(f64, f64)> = agreement
        .points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|&(x, y)| (f64::from(x).log10(), f64::from(y).log10()))
        .collect();
    let range = |values: Vec<f64>| {
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)))
    };
    let head = format!(
        "<section><h2>Agreement</h2><p>Rank correlation (Spearman) of {} parameters: <b>{:.4}</b>.</p>",
        count(agreement.points.len() as u64),
        agreement.spearman
    );
    if logs.is_empty() {
        return head + "</section>";
    }
    let axes = Axes {
        x: range(logs.iter().map(|p| p.0).collect()),
        y: range(logs.iter().map(|p| p.1).collect()),
        x_label: format!("log10 of {a}"),
        y_label: format!("log10 of {b}"),
        title: format!("{a} against {b}"),
    };
    let caption = "Each point is a parameter, both values above zero; every n-th parameter is shown.";
    format!("{head}{}</section>", figure(&axes.scatter(&logs), caption))
}
