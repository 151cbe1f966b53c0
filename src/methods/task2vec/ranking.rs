//! How well distances tell which source task helps a target task most.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result, printable};

const OP: &str = "distance";

/// Known scores of transfers: how well a model does on a target task when it learned a source task first.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The tasks.
    pub names: Vec<String>,
    /// `[source, target]`, higher is better; nothing where it is not known. A task's own score is not looked at.
    pub values: Vec<Vec<Option<f64>>>,
}

impl Scores {
    /// Reads a table in CSV: the first row names the target tasks after a cell of any text, each other row is
    /// a source task and its score for every target; an empty cell is a score that is not known, as is a row
    /// that is missing.
    ///
    /// ```text
    /// source,cola,mnli
    /// cola,,0.61
    /// mnli,0.57,
    /// ```
    ///
    /// Cells are separated by commas and trimmed. Quoted cells are not read, but refused.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read; [`Error::File`] naming the line of what is not such a table.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        Self::parse(&text).map_err(|problem| Error::file(path, problem))
    }

    /// Requires that every one of `names` is a task of the table.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the first that is not, and those that are; also where no target is one of
    /// `names`.
    pub fn cover(&self, names: &[String]) -> Result<()> {
        names.iter().try_for_each(|name| self.place(name).map(|_| ()))?;
        let targets: Vec<&String> = (0..self.names.len())
            .filter(|&target| self.values.iter().any(|row| row[target].is_some()))
            .map(|target| &self.names[target])
            .collect();
        if targets.is_empty() || targets.iter().any(|target| names.contains(target)) {
            return Ok(());
        }
        let listed = |names: &mut dyn Iterator<Item = &String>| {
            names.map(|name| printable(name)).collect::<Vec<_>>().join(", ")
        };
        let problem = format!(
            "the table's targets {} are none of the tasks {}: a target's own Fisher is one of those that are compared",
            listed(&mut targets.iter().copied()),
            listed(&mut names.iter())
        );
        Err(Error::mismatch(OP, problem))
    }

    fn place(&self, name: &str) -> Result<usize> {
        let found = self.names.iter().position(|known| known == name);
        let refuse = || {
            let known: Vec<String> = self.names.iter().map(|name| printable(name)).collect();
            let problem =
                format!("the scores have no task {}; they are of {}", printable(name), known.join(", "));
            Error::mismatch(OP, problem)
        };
        found.ok_or_else(refuse)
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        // Spreadsheets put a byte order mark before the text.
        let lines = text.trim_start_matches('\u{feff}').lines().enumerate().map(|(i, line)| (i + 1, line));
        let mut lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let (first, heading) = lines.next().ok_or("is empty, expected a table of scores in CSV")?;
        let mut names: Vec<String> = cells(first, heading)?.into_iter().skip(1).map(str::to_owned).collect();
        let targets = names.len();
        let mut rows: Vec<(String, Vec<Option<f64>>)> = Vec::new();
        for (line, text) in lines {
            let mut of_row = cells(line, text)?.into_iter();
            let source = of_row.next().unwrap_or_default().to_owned();
            let scores = of_row.map(|cell| score(line, cell)).collect::<std::result::Result<Vec<_>, _>>()?;
            if scores.len() != targets {
                return Err(format!(
                    "line {line} has {} scores, the heading has {targets} targets",
                    scores.len()
                ));
            }
            if rows.iter().any(|(known, _)| *known == source) {
                return Err(format!("line {line} is a second row of source {}", printable(&source)));
            }
            rows.push((source, scores));
        }
        if let Some((at, name)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(format!(
                "target {} stands twice in the heading, again in column {}",
                printable(name),
                at + 2
            ));
        }
        let sources = rows.iter().map(|(source, _)| source).filter(|source| !names.contains(source));
        let sources: Vec<String> = sources.cloned().collect();
        names.extend(sources);
        let mut values = vec![vec![None; names.len()]; names.len()];
        for (source, scores) in rows {
            let row = names.iter().position(|name| *name == source).expect("every source is among the names");
            values[row][..targets].copy_from_slice(&scores);
        }
        Ok(Self { names, values })
    }
}

fn cells(line: usize, text: &str) -> std::result::Result<Vec<&str>, String> {
    if text.contains('"') {
        return Err(format!(
            "line {line} has a quoted cell, which is not read; write the table without quotes"
        ));
    }
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    if cells.len() < 2 {
        return Err(format!("line {line} has no comma, expected a task and its scores, separated by commas"));
    }
    Ok(cells)
}

fn score(line: usize, cell: &str) -> std::result::Result<Option<f64>, String> {
    if cell.is_empty() {
        return Ok(None);
    }
    let parsed = cell.parse::<f64>().ok().filter(|score| score.is_finite());
    parsed.map(Some).ok_or_else(|| format!("line {line}: {} is not a score", printable(cell)))
}

/// The metrics of Li et al. (2025), table 7, after Vu et al. (2020): means over the target tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// Target tasks that have at least two sources with a known score.
    pub targets: u64,
    /// ρ: the mean rank, by distance, of the source with the best score; 1 is best.
    pub average_rank: f64,
    /// DCG of the sources by distance over that of the sources by score; DCG = Σ_i (2^score_i − 1) / log₂(i +
    /// 1). 1 is best.
    pub ndcg: f64,
    /// The mean of 1 over that rank; 1 is best.
    pub mean_reciprocal_rank: f64,
}

/// Ranks each target's sources by `matrix` `[source, target]`, smallest first, and holds that against known scores.
///
/// Sources at equal distances keep the order of `names`. Of several best scores, the one nearest by distance
/// counts. Where every gain 2^score − 1 of a target is 0, its NDCG is 1: no order is better than another.
///
/// # Errors
/// [`Error::Mismatch`] if a task has no scores or no target has two; [`Error::Argument`] for scores outside [0, 1000].
pub fn rank(names: &[String], matrix: &[Vec<f64>], scores: &Scores) -> Result<Ranking> {
    let places = names.iter().map(|name| scores.place(name)).collect::<Result<Vec<_>>>()?;
    let mut sum = Ranking { targets: 0, average_rank: 0.0, ndcg: 0.0, mean_reciprocal_rank: 0.0 };
    for target in 0..names.len() {
        let score = |source: usize| scores.values[places[source]][places[target]];
        let known = (0..names.len()).filter(|&source| source != target);
        let mut sources: Vec<(f64, f64)> =
            known.filter_map(|source| Some((matrix[source][target], score(source)?))).collect();
        if let Some((_, score)) = sources.iter().find(|(_, score)| !(0.0..=1000.0).contains(score)) {
            let problem = format!(
                "a score of target {} is {score}, expected 0 to 1000 (accuracies in [0, 1])",
                names[target]
            );
            return Err(Error::argument(OP, problem));
        }
        if sources.len() < 2 {
            continue;
        }
        sources.sort_by(|one, other| one.0.total_cmp(&other.0));
        let ranked: Vec<f64> = sources.iter().map(|(_, score)| *score).collect();
        let best = ranked.iter().copied().fold(0.0, f64::max);
        let first = ranked.iter().position(|score| *score == best).expect("the best is one of them");
        sum.targets += 1;
        sum.average_rank += first as f64 + 1.0;
        sum.mean_reciprocal_rank += 1.0 / (first as f64 + 1.0);
        sum.ndcg += ndcg(ranked);
    }
    if sum.targets == 0 {
        return Err(Error::mismatch(
            OP,
            "no target task among them has two sources with known scores; nothing can be ranked",
        ));
    }
    let targets = sum.targets as f64;
    Ok(Ranking {
        targets: sum.targets,
        average_rank: sum.average_rank / targets,
        ndcg: sum.ndcg / targets,
        mean_reciprocal_rank: sum.mean_reciprocal_rank / targets,
    })
}

fn ndcg(mut scores: Vec<f64>) -> f64 {
    let got = gain(&scores);
    scores.sort_by(|one, other| other.total_cmp(one));
    let best = gain(&scores);
    if best > 0.0 { got / best } else { 1.0 }
}

fn gain(scores: &[f64]) -> f64 {
    let discounted =
        scores.iter().enumerate().map(|(i, score)| (score.exp2() - 1.0) / (i as f64 + 2.0).log2());
    discounted.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn scores() -> Scores {
        let values = [[0.0, 0.5, 0.9], [0.2, 0.0, 0.1], [0.8, 0.7, 0.0]];
        let values = values.iter().map(|row| row.iter().map(|v| Some(*v)).collect()).collect();
        Scores { names: names(&["a", "b", "c"]), values }
    }

    #[test]
    fn distances_that_order_as_the_scores_do_are_perfect() {
        let matrix: Vec<Vec<f64>> =
            scores().values.iter().map(|row| row.iter().map(|v| 1.0 - v.unwrap_or(0.0)).collect()).collect();
        let got = rank(&names(&["a", "b", "c"]), &matrix, &scores()).expect("all are known");
        assert_eq!((got.targets, got.average_rank, got.mean_reciprocal_rank, got.ndcg), (3, 1.0, 1.0, 1.0));
    }

    #[test]
    fn the_metrics_are_their_definitions() {
        // Target a: b (0.2) before c (0.8), rank 2. Target b: c (0.7) before a (0.5), rank 1. Target c: b
        // (0.1) before a (0.9), rank 2.
        let matrix = vec![vec![0.0, 0.9, 0.9], vec![0.1, 0.0, 0.1], vec![0.9, 0.1, 0.0]];
        let got = rank(&names(&["a", "b", "c"]), &matrix, &scores()).expect("all are known");
        assert!((got.average_rank - 5.0 / 3.0).abs() < 1e-15);
        assert!((got.mean_reciprocal_rank - 2.0 / 3.0).abs() < 1e-15);
        let g = |score: f64| 2.0_f64.powf(score) - 1.0;
        let second = 1.0 / 3.0_f64.log2();
        let a = (g(0.2) + g(0.8) * second) / (g(0.8) + g(0.2) * second);
        let c = (g(0.1) + g(0.9) * second) / (g(0.9) + g(0.1) * second);
        assert!((got.ndcg - (a + 1.0 + c) / 3.0).abs() < 1e-15);
    }

    #[test]
    fn a_table_is_read_whatever_the_order_of_its_rows() {
        let table =
            Scores::parse("\u{feff}source, a ,b\r\n\nb,0.5,\n c , .25,1e-1\n").expect("a sound table");
        assert_eq!(table.names, names(&["a", "b", "c"]));
        let none = [None, None, None];
        assert_eq!(table.values, [none, [Some(0.5), None, None], [Some(0.25), Some(0.1), None]]);
    }

    #[test]
    fn what_is_no_table_of_scores_is_refused_with_its_line() {
        for (text, says) in [
            ("", "is empty"),
            ("a b\n", "line 1 has no comma"),
            ("s,a,b\na,1\n", "line 2 has 1 scores, the heading has 2 targets"),
            ("s,a,b\na,1,2,3\n", "line 2 has 3 scores"),
            ("s,a,a\n", "target \"a\" stands twice"),
            ("s,a\nb,1\nb,2\n", "line 3 is a second row of source \"b\""),
            ("s,a\n\"b, c\",1\n", "line 2 has a quoted cell"),
            ("s,a\nb,high\n", "line 2: \"high\" is not a score"),
            ("s,a\nb,nan\n", "line 2: \"nan\" is not a score"),
        ] {
            let problem = Scores::parse(text).expect_err(says);
            assert!(problem.contains(says), "expected `{says}` in: {problem}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out_or_refused() {
        let mut known = scores();
        known.values[1][0] = None;
        let matrix = vec![vec![0.0; 3]; 3];
        assert_eq!(rank(&names(&["a", "b", "c"]), &matrix, &known).expect("two targets").targets, 2);
        let refused = rank(&names(&["a", "x", "c"]), &matrix, &known).expect_err("x has no scores");
        assert!(refused.to_string().contains("no task \"x\"; they are of \"a\", \"b\", \"c\""), "{refused}");
        assert!(rank(&names(&["a", "b"]), &matrix, &known).is_err());
        known.values[0][2] = Some(-1.0);
        assert!(rank(&names(&["a", "b", "c"]), &matrix, &known).is_err());
    }
}
