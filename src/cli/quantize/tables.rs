//! What `fasq-quantize` prints: plans, sizes, reports.

use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use console::Term;
use serde_json::{Value, json};

use crate::model::arch::Role;
use crate::quantize::{Fitted, Item, Plan, Report};

/// One line for all tensors that differ only in the number of their layer.
fn groups<T>(items: impl Iterator<Item = (String, T)>) -> Vec<(String, Vec<T>)> {
    let mut groups: Vec<(String, Vec<T>)> = vec![];
    for (key, item) in items {
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, members)) => members.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups
}

/// A tensor's name with `*` for its layer.
fn pattern(name: &str) -> String {
    let parts: Vec<_> =
        name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part }).collect();
    parts.join(".")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    if let Some((_, columns)) = Term::stdout().size_checked() {
        table.set_width(columns);
    }
    table
}

fn right_align(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// How each tensor is stored, the estimated loss, and the bytes of memory that error feedback takes.
pub fn plan_text(plan: &Plan, loss: Option<f64>, memory: Option<usize>) -> String {
    let file_len = plan.layout.file_len();
    let mut table = table(&["tensor", "", "shape", "stored as", "MB"]);
    let key = |item: &Item| match item.role {
        Role::Keep => "norms and other small tensors".to_owned(),
        _ => format!("{}|{}|{:?}", pattern(&item.name), item.spec(), item.shape),
    };
    for (key, members) in groups(plan.items.iter().map(|item| (key(item), item))) {
        let small = members[0].role == Role::Keep;
        let name = key.split('|').next().unwrap_or_default();
        let shape = if small { String::new() } else { format!("{:?}", members[0].shape) };
        let spec = if small { "unchanged".into() } else { members[0].spec() };
        let bytes: usize = members.iter().map(|item| item.bytes()).sum();
        let count = if members.len() > 1 { format!("x {}", members.len()) } else { String::new() };
        table.add_row([name, &count, &shape, &spec, &megabytes(bytes as u64)]);
    }
    let tensors: usize = plan.items.iter().map(Item::bytes).sum();
    let rest = file_len.saturating_sub(tensors as u64);
    table.add_row(["universal codebooks, tokenizer, header", "", "", "", &megabytes(rest)]);
    right_align(&mut table, &[1, 4]);
    let size = size_line(file_len, plan.fp16_bytes() as u64);
    let loss = loss.map(|loss| format!("\nestimated KL divergence: {loss:.4}")).unwrap_or_default();
    let memory =
        memory.map(|bytes| format!("\nfeedback takes up to {} MB of memory", bytes.div_ceil(1_000_000)));
    format!("{table}\n{size}{loss}{}", memory.unwrap_or_default())
}

/// The same for programs.
pub fn plan_json(plan: &Plan, loss: Option<f64>) -> Value {
    let tensors = plan.items.iter().filter(|item| item.role != Role::Keep);
    let tensor = |item: &Item| json!({ "name": item.name, "spec": item.spec(), "bytes": item.bytes() });
    json!({
        "bytes": plan.layout.file_len(),
        "fp16_bytes": plan.fp16_bytes(),
        "loss": loss,
        "tensors": tensors.map(tensor).collect::<Vec<_>>(),
    })
}

/// A row for each size.
pub fn sizes_text(sizes: &[Fitted]) -> String {
    let mut table = table(&["MB", "% of FP16", "bits", "estimated KL", "composition, in % of the weights"]);
    for Fitted { plan, loss, .. } in sizes {
        let (bytes, fp16) = (plan.layout.file_len() as f64, plan.fp16_bytes() as f64);
        let matrices = plan.items.iter().filter(|item| item.role != Role::Keep);
        let mut specs = groups(matrices.map(|item| (item.spec(), item.elements())));
        specs.sort_by_key(|(_, elements)| std::cmp::Reverse(elements.iter().sum::<usize>()));
        let all: usize = specs.iter().flat_map(|(_, elements)| elements).sum();
        let part = |(spec, elements): &(String, Vec<usize>)| {
            let percent = 100.0 * elements.iter().sum::<usize>() as f64 / all as f64;
            format!("{} {percent:.0}", spec.trim_end_matches("@universal"))
        };
        table.add_row([
            format!("{:.2}", bytes / 1e6),
            format!("{:.1}", 100.0 * bytes / fp16),
            format!("{:.2}", 16.0 * bytes / fp16),
            format!("{loss:.4}"),
            specs.iter().map(part).collect::<Vec<_>>().join(", "),
        ]);
    }
    right_align(&mut table, &[0, 1, 2, 3]);
    table.to_string()
}

/// The same for programs.
pub fn sizes_json(sizes: &[Fitted]) -> Value {
    sizes.iter().map(|fitted| plan_json(&fitted.plan, Some(fitted.loss))).collect()
}

/// What a finished file lost, its size, and the seconds since the program began.
pub fn report_text(report: &Report, out: &Path, seconds: f64) -> String {
    let mut table = table(&["tensor", "", "stored as", "error mean", "max"]);
    let key = |name: &str, spec: &str| format!("{}|{spec}", pattern(name));
    let tensors = report.tensors.iter().map(|t| (key(&t.name, &t.spec.to_string()), t));
    for (key, members) in groups(tensors) {
        let name = key.split('|').next().unwrap_or_default();
        let mean = members.iter().map(|t| t.error).sum::<f64>() / members.len() as f64;
        let max = members.iter().map(|t| t.error).fold(0.0, f64::max);
        let count = if members.len() > 1 { format!("x {}", members.len()) } else { String::new() };
        let spec = members[0].spec.to_string();
        table.add_row([name, &count, &spec, &format!("{mean:.5}"), &format!("{max:.5}")]);
    }
    right_align(&mut table, &[1, 3, 4]);
    let errors = if report.tensors.is_empty() {
        String::new()
    } else {
        format!("{table}\nerror: |W - W'|^2 / |W|^2\n")
    };
    let size = size_line(report.bytes, report.fp16_bytes);
    let (quantizing, speed) = (report.quantizing_seconds, report.speed() / 1e6);
    let remarks: String = report.remarks.iter().map(|remark| format!("{remark}\n")).collect();
    format!(
        "{errors}{remarks}{}: {size}\n{seconds:.1} s, of which quantizing took {quantizing:.1} s ({speed:.1} M weights/s)",
        out.display()
    )
}

fn size_line(bytes: u64, fp16: u64) -> String {
    let percent = 100.0 * bytes as f64 / fp16 as f64;
    format!("{} MB, {percent:.1} % of FP16 ({} MB)", megabytes(bytes), megabytes(fp16))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_grouped() {
        assert_eq!(pattern("model.layers.12.mlp.up_proj.weight"), "model.layers.*.mlp.up_proj.weight");
        assert_eq!(pattern("lm_head.weight"), "lm_head.weight");
        let names = ["a.0.x", "b", "a.1.x"].map(|name| (pattern(name), name));
        let groups = groups(names.into_iter());
        assert_eq!(groups, [("a.*.x".into(), vec!["a.0.x", "a.1.x"]), ("b".into(), vec!["b"])]);
    }
}
