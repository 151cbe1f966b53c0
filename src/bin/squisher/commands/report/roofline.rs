//! A device's kernels under its roof.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use squisher::Error;
use squisher::bench::{Record, Row};

use super::page::figure;
use crate::charts::{Axes, Mark, escape, shares};

/// A bench record, if the path is that of one: a Fisher or mask is no CSV.
pub(super) fn read(path: &Path) -> Option<Result<Record, Error>> {
    let is_record = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    is_record.then(|| {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error.to_string()))?;
        Record::from_csv(&text).map_err(|error| Error::file(path, error.to_string()))
    })
}

/// The section of one record.
pub(super) fn section(record: &Record) -> String {
    let largest = largest(record);
    format!(
        "<section><h2>{} on {}</h2>{}{}{}{}</section>",
        escape(&record.adapter),
        escape(&record.date),
        ceilings(record),
        figure(
            &roofline(record, &largest),
            "Each number is a kernel at its largest measured size: how much it computes for each byte that it must move, and how \
             fast. The line is the roof: left of its edge the copy's rate, right of it the arithmetic's. The broken line below it is half \
             of it. It is drawn at the best of the whole run, and shares are of what the device did in turns with a kernel. \
             Points above the roof stayed in a cache. Kernels that compute nothing are in the next figure only.",
        ),
        figure(
            &shares("share of the roof by kernel", &bars(&largest)),
            "The share of the roof that each kernel reaches at its largest measured size.",
        ),
        table(&largest),
    )
}

/// Each kernel's measurement that moves and computes most, in the order of the record.
fn largest(record: &Record) -> Vec<&Row> {
    let mut best: BTreeMap<&str, (usize, &Row)> = BTreeMap::new();
    for (place, row) in record.rows.iter().enumerate() {
        let size = |row: &Row| u128::from(row.bytes) + u128::from(row.flops);
        let entry = best.entry(&row.kernel).or_insert((place, row));
        if size(row) > size(entry.1) {
            entry.1 = row;
        }
    }
    let mut rows: Vec<(usize, &Row)> = best.into_values().collect();
    rows.sort_by_key(|(place, _)| *place);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn ceilings(record: &Record) -> String {
    let rows = record.ceilings.rows().map(|row| {
        let value = match (row.kernel.as_str(), row.flops) {
            ("ceiling.latency", _) => format!("{:.2} us", 1e6 * row.seconds),
            (_, 0) => format!("{:.1} GB/s", 1e-9 * row.bytes_per_second()),
            _ => format!("{:.1} GFLOP/s", 1e-9 * row.flops_per_second()),
        };
        let name = row.kernel.trim_start_matches("ceiling.");
        format!("<tr><th>{}</th><td class='n'>{value}</td><td>{}</td></tr>", escape(name), escape(&row.shape))
    });
    format!("<table>{}</table>", rows.collect::<String>())
}

/// Operations a byte and operations a second, as powers of ten.
fn point(row: &Row) -> (f64, f64) {
    ((row.flops as f64 / row.bytes.max(1) as f64).log10(), row.flops_per_second().log10())
}

fn roofline(record: &Record, rows: &[&Row]) -> String {
    let (bandwidth, arithmetic) = (record.ceilings.bandwidth(), record.ceilings.arithmetic());
    let edge = (arithmetic / bandwidth).log10();
    let points: Vec<(usize, &&Row)> = (1..).zip(rows).filter(|(_, row)| row.flops > 0).collect();
    let all = || points.iter().map(|(_, row)| point(row));
    let low = |values: &mut dyn Iterator<Item = f64>, start: f64| values.fold(start, f64::min).floor();
    let high = |values: &mut dyn Iterator<Item = f64>, start: f64| values.fold(start, f64::max).ceil();
    let x = (low(&mut all().map(|p| p.0), edge - 1.0), high(&mut all().map(|p| p.0), edge + 1.0));
    let y = (
        low(&mut all().map(|p| p.1), arithmetic.log10() - 3.0),
        high(&mut all().map(|p| p.1), arithmetic.log10()),
    );
    let roof = |x: f64| (bandwidth.log10() + x).min(arithmetic.log10());
    // The slope is cut where it would leave the frame.
    let start = x.0.max(y.0 - bandwidth.log10());
    let line = |down: f64| {
        let start = (start + down).max(x.0);
        vec![(start, roof(start) - down), (edge, roof(edge) - down), (x.1, roof(x.1) - down)]
    };
    let axes = Axes {
        x,
        y,
        x_label: "operations for each byte".into(),
        y_label: "operations a second".into(),
        title: format!("roofline of {}", record.adapter),
    };
    let mark = |(number, row): &(usize, &&Row)| Mark {
        at: point(row),
        label: number.to_string(),
        title: format!(
            "{} {}: {:.1} GFLOP/s, {:.1} % of the roof",
            row.kernel,
            row.shape,
            1e-9 * row.flops_per_second(),
            100.0 * share(row)
        ),
    };
    let marks: Vec<Mark> = points.iter().map(mark).collect();
    axes.decades(&[(line(0.0), false), (line(2.0_f64.log10()), true)], &marks)
}

/// Of what the device did in turns with the kernel.
fn share(row: &Row) -> f64 {
    row.share().unwrap_or_default()
}

fn bars(rows: &[&Row]) -> Vec<(String, f64, String)> {
    let bar = |(number, row): (usize, &&Row)| {
        let title = format!("{} {}: {:.3} ms", row.kernel, row.shape, 1e3 * row.seconds);
        (format!("{} {number}", row.kernel), share(row), title)
    };
    (1..).zip(rows).map(bar).collect()
}

fn table(rows: &[&Row]) -> String {
    let mut html = String::from(
        "<details><summary>numbers</summary><table><tr><th></th><th>kernel</th><th>size</th><th>time</th>\
         <th>GB/s</th><th>GFLOP/s</th><th>of roof</th></tr>",
    );
    for (number, row) in (1..).zip(rows) {
        let _ = write!(
            html,
            "<tr><td class='n'>{number}</td><td>{}</td><td>{}</td><td class='n'>{:.3} ms</td><td class='n'>{:.2}</td>\
             <td class='n'>{:.2}</td><td class='n'>{:.1} %</td></tr>",
            escape(&row.kernel),
            escape(&row.shape),
            1e3 * row.seconds,
            1e-9 * row.bytes_per_second(),
            1e-9 * row.flops_per_second(),
            100.0 * share(row)
        );
    }
    html + "</table></details>"
}
