//! What was measured, and the file that keeps it.
//!
//! A record is a table in CSV (RFC 4180), one line a measurement, the ceilings first. Every line says where
//! and when it was measured, so that records of many devices can be joined by `cat`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Ceilings;
use super::job::{Clock, Job, Timing};
use super::turns;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::kernel::Cost;

/// One measured time with the least work that it stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The kernel, or the ceiling.
    pub kernel: String,
    /// Its sizes.
    pub shape: String,
    /// The fewest bytes to move.
    pub bytes: u64,
    /// The fewest operations to do.
    pub flops: u64,
    /// The median of several runs.
    pub seconds: f64,
    /// By which clock.
    pub clock: Clock,
    /// Of a kernel's smallest size on a device: the seconds that its very first run took, from the shader's text on.
    pub first_seconds: Option<f64>,
    /// What limits it; nothing for a ceiling.
    pub roof: Option<Roof>,
}

/// The ceiling that a kernel meets first at one size, as it was measured in turns with the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Which.
    pub bound: Bound,
    /// Bytes a second, or operations.
    pub per_second: f64,
}

/// What limits a kernel at one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Moving its bytes takes longer than its arithmetic.
    Bandwidth,
    /// Its arithmetic takes longer.
    Arithmetic,
}

/// What was not measured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The kernel.
    pub kernel: String,
    /// Its sizes.
    pub shape: String,
    /// Why not.
    pub reason: String,
}

/// The ceilings of a device, and its kernels beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where: the adapter with its driver.
    pub adapter: String,
    /// The day, in UTC.
    pub date: String,
    /// This library's version.
    pub version: String,
    /// What the device can do.
    pub ceilings: Ceilings,
    /// What the kernels do.
    pub rows: Vec<Row>,
    /// What was not measured. No part of the file.
    pub skipped: Vec<Skipped>,
}

impl Row {
    /// The job's time, by itself.
    pub(super) fn measured(job: &Job, budget: Duration, interrupt: &Interrupt) -> Result<Self> {
        Ok(Self::new(job, job.time(budget, interrupt)?))
    }

    /// The job's time, in turns with `ceiling`, which is the one that `bound` names.
    pub(super) fn beside(
        job: &Job,
        (bound, ceiling): (Bound, &Job),
        budget: Duration,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let (timing, runs) = turns::beside(job, ceiling, budget, interrupt)?;
        let per_second = bound.work(ceiling.cost) as f64 / (timing.seconds * runs);
        Ok(Self { roof: Some(Roof { bound, per_second }), ..Self::new(job, timing) })
    }

    fn new(job: &Job, timing: Timing) -> Self {
        Self {
            kernel: job.name.clone(),
            shape: job.shape.clone(),
            bytes: job.cost.bytes,
            flops: job.cost.flops,
            seconds: timing.seconds,
            clock: timing.clock,
            first_seconds: None,
            roof: None,
        }
    }

    /// Bytes moved in a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Operations done in a second.
    #[must_use]
    pub fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    /// The share of the roof that it reaches; nothing for a ceiling.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let Roof { bound, per_second } = self.roof?;
        let work = bound.work(Cost { bytes: self.bytes, flops: self.flops });
        Some(work as f64 / self.seconds / per_second)
    }
}

impl Bound {
    /// The part of a cost that it limits.
    const fn work(self, cost: Cost) -> u64 {
        match self {
            Self::Bandwidth => cost.bytes,
            Self::Arithmetic => cost.flops,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Arithmetic => "arithmetic",
        }
    }
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
        }
    }
}

/// One line for people and machines: what is known of a measurement.
#[derive(Serialize)]
struct Line<'a> {
    kernel: &'a str,
    shape: &'a str,
    bytes: u64,
    flops: u64,
    seconds: f64,
    clock: &'a str,
    bytes_per_second: f64,
    flops_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seconds: Option<f64>,
}

impl<'a> From<&'a Row> for Line<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            kernel: &row.kernel,
            shape: &row.shape,
            bytes: row.bytes,
            flops: row.flops,
            seconds: row.seconds,
            clock: row.clock.name(),
            bytes_per_second: row.bytes_per_second(),
            flops_per_second: row.flops_per_second(),
            bound: row.roof.map(|roof| roof.bound),
            ceiling_per_second: row.roof.map(|roof| roof.per_second),
            share: row.share(),
            first_seconds: row.first_seconds,
        }
    }
}

/// The columns of the file: where and when, what was measured, and what follows from that.
const COLUMNS: &str = "adapter,date,version,kernel,shape,bytes,flops,seconds,clock,bytes_per_second,flops_per_second,bound,ceiling_per_second,share,first_seconds";

impl Record {
    /// An empty record of today.
    pub(super) fn new(adapter: String, ceilings: Ceilings) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { adapter, date: today(), version, ceilings, rows: Vec::new(), skipped: Vec::new() }
    }

    /// Where a record of today is kept: a folder named after the adapter by its letters, digits and dots, the
    /// rest as single hyphens, and in it a file named after the day. Known before anything is measured, so
    /// that a file which is there can be refused then.
    #[must_use]
    pub fn file_of(adapter: &str) -> PathBuf {
        let known = |c: char| c.is_ascii_alphanumeric() || c == '.';
        let words = adapter.split(|c: char| !known(c)).filter(|word| !word.is_empty());
        let name = words.collect::<Vec<_>>().join("-");
        // A name of dots alone would be another folder.
        let folder = if name.trim_matches(['.', '-']).is_empty() { "unnamed".into() } else { name };
        Path::new(&folder).join(format!("{}.csv", today()))
    }

    /// The file's text.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut text = format!("{COLUMNS}\n");
        for line in self.ceilings.rows().chain(&self.rows).map(Line::from) {
            let bound = line.bound.map_or("", Bound::name);
            let ceiling = line.ceiling_per_second.map_or(String::new(), |rate| format!("{rate:e}"));
            let share = line.share.map_or(String::new(), |share| format!("{share:.4}"));
            let numbers = format!(
                "{},{},{:e},{},{:e},{:e}",
                line.bytes,
                line.flops,
                line.seconds,
                line.clock,
                line.bytes_per_second,
                line.flops_per_second
            );
            let words = [&self.adapter, &self.date, &self.version, line.kernel, line.shape].map(quoted);
            let first = line.first_seconds.map_or(String::new(), |first| format!("{first:e}"));
            let _ = writeln!(text, "{},{numbers},{bound},{ceiling},{share},{first}", words.join(","));
        }
        text
    }

    /// A record from its file's text. What follows from the measurements is computed again, not read.
    ///
    /// # Errors
    /// [`Error::Argument`] for text that is not a record of one device, with its line.
    pub fn from_csv(text: &str) -> Result<Self> {
        let mut lines = text.lines().zip(1..);
        let header = lines.next().map(|(line, _)| line);
        if header != Some(COLUMNS) {
            return Err(refuse(1, "the columns are not those of a bench record"));
        }
        let mut head: Option<[String; 3]> = None;
        let mut rows = Vec::new();
        for (line, number) in lines {
            let (device, row) = parse(line).ok_or_else(|| refuse(number, "is not a measurement"))?;
            if head.as_ref().is_some_and(|head| head[0] != device[0]) {
                return Err(refuse(number, "is of another adapter than the lines before"));
            }
            head.get_or_insert(device);
            rows.push(row);
        }
        let [adapter, date, version] = head.ok_or_else(|| refuse(2, "is missing: nothing was measured"))?;
        let mut take = |name: &str| {
            let place = rows.iter().position(|row| row.kernel == format!("ceiling.{name}"))?;
            Some(rows.remove(place))
        };
        let mut need =
            |name: &str| take(name).ok_or_else(|| refuse(2, &format!("ceiling.{name} is missing")));
        let (copy, fma, latency) = (need("copy")?, need("fma")?, need("latency")?);
        let (products, upload, readback) = (take("products"), take("upload"), take("readback"));
        let ceilings = Ceilings { copy, fma, products, upload, readback, latency };
        Ok(Self { adapter, date, version, ceilings, rows, skipped: Vec::new() })
    }
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            adapter: &'a str,
            date: &'a str,
            version: &'a str,
            ceilings: Vec<Line<'a>>,
            kernels: Vec<Line<'a>>,
            skipped: &'a [Skipped],
        }
        Whole {
            adapter: &self.adapter,
            date: &self.date,
            version: &self.version,
            ceilings: self.ceilings.rows().map(Line::from).collect(),
            kernels: self.rows.iter().map(Line::from).collect(),
            skipped: &self.skipped,
        }
        .serialize(serializer)
    }
}

fn refuse(line: usize, problem: &str) -> Error {
    Error::argument("bench record", format!("line {line} {problem}"))
}

/// A field as it stands in a file; names of devices hold commas.
fn quoted(field: &str) -> String {
    let plain = field.replace(['\n', '\r'], " ");
    if plain.contains([',', '"']) { format!("\"{}\"", plain.replace('"', "\"\"")) } else { plain }
}

/// The fields of one line; nothing for a quote that does not end.
fn fields(line: &str) -> Option<Vec<String>> {
    let (mut found, mut field, mut inside) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if inside && letters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => inside = !inside,
            ',' if !inside => found.push(std::mem::take(&mut field)),
            letter => field.push(letter),
        }
    }
    found.push(field);
    (!inside).then_some(found)
}

/// Where and when, and what was measured there.
fn parse(line: &str) -> Option<([String; 3], Row)> {
    let fields = fields(line)?;
    let (device, measured) = fields.split_first_chunk::<3>()?;
    let [kernel, shape, bytes, flops, seconds, clock, _, _, bound, ceiling, _, first] = measured else {
        return None;
    };
    let row = Row {
        kernel: kernel.clone(),
        shape: shape.clone(),
        bytes: bytes.parse().ok()?,
        flops: flops.parse().ok()?,
        seconds: positive(seconds)?,
        clock: [Clock::Device, Clock::Host].into_iter().find(|known| known.name() == clock)?,
        first_seconds: if first.is_empty() { None } else { Some(positive(first)?) },
        roof: roof(kernel, bound, ceiling)?,
    };
    Some((device.clone(), row))
}

/// What limits a kernel; an empty one for a ceiling, which nothing else has.
fn roof(kernel: &str, bound: &str, per_second: &str) -> Option<Option<Roof>> {
    if kernel.starts_with("ceiling.") {
        return (bound.is_empty() && per_second.is_empty()).then_some(None);
    }
    let bound = [Bound::Bandwidth, Bound::Arithmetic].into_iter().find(|known| known.name() == bound)?;
    Some(Some(Roof { bound, per_second: positive(per_second)? }))
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|&value: &f64| value > 0.0 && value.is_finite())
}

/// Year, month and day in UTC.
fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date_of(since.as_secs() / 86_400)
}

/// The date of a day counted from 1970-01-01, by counting off years and months of the Gregorian calendar.
fn date_of(mut day: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let months = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, bytes: u64, flops: u64, seconds: f64) -> Row {
        let shape = "n=1, \"two\"".to_owned();
        let clock = Clock::Device;
        Row { kernel: kernel.into(), shape, bytes, flops, seconds, clock, first_seconds: None, roof: None }
    }

    fn record() -> Record {
        let ceilings = Ceilings {
            copy: row("ceiling.copy", 100, 0, 1.0),
            fma: row("ceiling.fma", 0, 2000, 1.0),
            products: Some(row("ceiling.products", 0, 1000, 1.0)),
            upload: None,
            readback: None,
            latency: row("ceiling.latency", 12, 4, 1e-6),
        };
        let roof = |bound, per_second| Some(Roof { bound, per_second });
        let rows = vec![
            Row { first_seconds: Some(0.25), roof: roof(Bound::Bandwidth, 80.0), ..row("a.b", 50, 100, 1.0) },
            Row { roof: roof(Bound::Arithmetic, 1e3), ..row("a.c", 50, 900, 1.5) },
        ];
        Record { rows, ..Record::new("a device (driver, 256 bits)".into(), ceilings) }
    }

    #[test]
    fn the_share_is_that_of_the_nearer_ceiling() {
        let Record { rows, ceilings, .. } = record();
        let bound = |row: &Row| ceilings.bound(Cost { bytes: row.bytes, flops: row.flops });
        // Held against the ceiling that took turns with it, 80, not against the one of the whole run, 100.
        assert_eq!((bound(&rows[0]), rows[0].share()), (Bound::Bandwidth, Some(50.0 / 80.0)));
        assert_eq!((bound(&rows[1]), rows[1].share()), (Bound::Arithmetic, Some(0.6)));
        assert_eq!(ceilings.copy.share(), None);
    }

    #[test]
    fn a_record_comes_back_from_its_file() {
        let record = record();
        assert_eq!(Record::from_csv(&record.to_csv()).expect("it is a record"), record);
        let file = Record::file_of(&record.adapter);
        assert_eq!(file.parent(), Some(Path::new("a-device-driver-256-bits")));
    }

    #[test]
    fn what_is_no_record_is_refused_by_line() {
        let whole = record().to_csv();
        let lines: Vec<&str> = whole.lines().collect();
        let of = |lines: &[&str]| Record::from_csv(&lines.join("\n")).expect_err("no record").to_string();
        assert!(of(&lines[1..]).contains("line 1 the columns"));
        assert!(of(&lines[..1]).contains("line 2 is missing"));
        assert!(of(&[lines[0], lines[2]]).contains("ceiling.copy is missing"));
        let torn = &lines[1][..lines[1].len() / 2];
        assert!(of(&[lines[0], lines[1], torn]).contains("line 3 is not a measurement"));
        let other = lines[1].replace("a device", "another");
        assert!(of(&[lines[0], lines[1], &other]).contains("line 3 is of another adapter"));
        let negative = lines[1].replace(",1e0,", ",-1e0,");
        assert!(of(&[lines[0], &negative]).contains("line 2 is not a measurement"));
        let roofless = lines[5].replace("bandwidth", "");
        assert_ne!(lines[5], roofless);
        assert!(of(&[lines[0], lines[1], &roofless]).contains("line 3 is not a measurement"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (day, date) in [
            (0, "1970-01-01"),
            (364, "1970-12-31"),
            (11_016, "2000-02-29"),
            (20_778, "2026-11-21"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date_of(day), date);
        }
    }
}
