//! `fasq-eval choices`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use pollster::block_on;
use serde_json::{Value, json};

use super::{ModelArgs, Progress, tokenizer};
use crate::backend::Backend;
use crate::cli::{interrupt_flag, output::Output};
use crate::eval::choices::{Scores, choices};
use crate::eval::mean::Mean;
use crate::eval::tasks::{Question, Task};
use crate::model::{Model, Source};
use crate::{Error, Result};

/// Multiple choice, from the tasks' published JSONL files, as lm-evaluation-harness scores it without examples: `acc`
/// by likelihood, `acc_norm` by likelihood per character. Several tasks (--task A --data FILE --task B --data FILE)
/// are averaged; WinoGrande, which has no acc_norm, counts there with its acc.
#[derive(Args)]
pub struct ChoicesArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// arc_easy, arc_challenge, hellaswag, piqa or winogrande
    #[arg(long, value_name = "NAME", required = true)]
    task: Vec<Task>,
    /// The task's rows; PIQA's answers may stand in STEM-labels.lst beside STEM.jsonl
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Rows of each task at most [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Begin every text with the tokenizer's BOS, as the harness does with add_bos_token
    #[arg(long)]
    bos: bool,
}

pub fn run<B: Backend>(args: &ChoicesArgs, model: &Model<B>, source: &Source, start: Instant) -> Result<()> {
    if args.task.len() != args.data.len() {
        let expected = format!("one for each of {} --task", args.task.len());
        return Err(Error::mismatch("--data", expected, args.data.len()));
    }
    let tokenizer = tokenizer(source)?;
    let tasks = args.task.iter().zip(&args.data).map(|(task, file)| Ok((*task, read(*task, file)?)));
    let mut tasks = tasks.collect::<Result<Vec<_>>>()?;
    for (_, questions) in &mut tasks {
        questions.truncate(args.limit.map_or(usize::MAX, |n| n as usize));
    }
    let interrupted = interrupt_flag()?;
    let mut results = Vec::new();
    for (task, questions) in &tasks {
        let progress = Progress::new(&format!("{task} questions"));
        let scores = block_on(choices(model, &tokenizer, questions, args.bos, |done, scores| {
            progress.show(done, questions.len(), format!("acc {}", percent(&scores.acc)));
            !interrupted.load(Ordering::Relaxed)
        }));
        let (_, time) = progress.finish();
        results.push((*task, scores?, time.as_secs_f64()));
    }
    let mut output = Output::new(args.model.json, false);
    if args.model.json {
        let mut line = as_json(&results, &model.backend().describe(), args.bos);
        line["seconds"] = start.elapsed().as_secs_f64().into();
        return output.line(&line);
    }
    output.text(&as_table(&results))?;
    output.remark(&format!("{:.1} s in all; {}", start.elapsed().as_secs_f64(), model.backend().describe()));
    Ok(())
}

fn read(task: Task, file: &Path) -> Result<Vec<Question>> {
    let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let labels = file.with_file_name(format!("{stem}-labels.lst"));
    let labels = match task == Task::Piqa && labels.exists() {
        true => Some(std::fs::read_to_string(&labels).map_err(Error::io(&labels))?),
        false => None,
    };
    task.questions(&file.display().to_string(), &text, labels.as_deref())
}

type Results = [(Task, Scores, f64)];

/// `acc_norm`, or `acc` where there is none.
fn norm(scores: &Scores) -> &Mean {
    if scores.acc_norm.count() > 0 { &scores.acc_norm } else { &scores.acc }
}

/// The mean of several tasks' means, and its standard error.
fn average<'a>(means: impl Iterator<Item = &'a Mean>) -> (f64, f64) {
    let means: Vec<_> = means.collect();
    let n = means.len() as f64;
    let squares: f64 = means.iter().map(|mean| mean.error().powi(2)).sum();
    (means.iter().map(|mean| mean.value()).sum::<f64>() / n, squares.sqrt() / n)
}

fn as_json(results: &Results, backend: &str, bos: bool) -> Value {
    let of_task = |(task, scores, seconds): &(Task, Scores, f64)| {
        let mut value = json!({"questions": scores.acc.count(), "acc": scores.acc.value(), "acc_error": scores.acc.error()});
        if scores.acc_norm.count() > 0 {
            value["acc_norm"] = scores.acc_norm.value().into();
            value["acc_norm_error"] = scores.acc_norm.error().into();
        }
        value["seconds"] = (*seconds).into();
        (task.to_string(), value)
    };
    let (acc, acc_error) = average(results.iter().map(|(_, scores, _)| &scores.acc));
    let (acc_norm, acc_norm_error) = average(results.iter().map(|(_, scores, _)| norm(scores)));
    let tasks: serde_json::Map<String, Value> = results.iter().map(of_task).collect();
    json!({
        "tasks": tasks,
        "average": {"acc": acc, "acc_error": acc_error, "acc_norm": acc_norm, "acc_norm_error": acc_norm_error},
        "bos": bos,
        "backend": backend,
    })
}

fn percent(mean: &Mean) -> String {
    percents(mean.value(), mean.error())
}

fn percents(value: f64, error: f64) -> String {
    format!("{:.2} ± {:.2} %", 100.0 * value, 100.0 * error)
}

fn as_table(results: &Results) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["task", "questions", "acc", "acc_norm"]);
    for (task, scores, _) in results {
        let acc_norm = if scores.acc_norm.count() > 0 { percent(&scores.acc_norm) } else { String::new() };
        table.add_row([task.name(), &scores.acc.count().to_string(), &percent(&scores.acc), &acc_norm]);
    }
    if results.len() > 1 {
        let (acc, acc_error) = average(results.iter().map(|(_, scores, _)| &scores.acc));
        let (acc_norm, norm_error) = average(results.iter().map(|(_, scores, _)| norm(scores)));
        table.add_row(["average", "", &percents(acc, acc_error), &percents(acc_norm, norm_error)]);
    }
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    format!("{}\n", table.trim_fmt())
}
