//! fasq-bench, where no GPU is needed.

use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fasq-bench")).args(args).args(["--backend", "cpu"]).output().unwrap()
}

/// The cells of the rows of the table that was printed, headers first.
fn table(args: &[&str]) -> Vec<Vec<String>> {
    let output = bench(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|-"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The numbers of a column, by its header.
fn column(table: &[Vec<String>], header: &str) -> Vec<f64> {
    let place = table[0].iter().position(|cell| cell == header).unwrap();
    table[1..].iter().map(|row| row[place].parse().unwrap()).collect()
}

#[test]
fn linear_layers_of_every_kind_are_timed() {
    let args = ["kernels", "--shapes", "64x96,32x64", "--specs", "2-16@subspace,f16", "--rows", "1,20"];
    let table = table(&args);
    assert_eq!(table.len(), 1 + 2 * 2 * 2);
    assert!(column(&table, "us").iter().all(|us| *us > 0.0));
}

#[test]
fn every_operation_of_a_family_is_timed() {
    let rows =
        |shape| table(&["operations", "--shape", shape, "--rows", "1", "--positions", "8", "--repeat", "1"]);
    let (llama, qwen) = (rows("llama3-8b"), rows("qwen3.5-9b"));
    let names = |table: &[Vec<String>]| table[1..].iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    for name in ["rms_norm", "glu", "rope_cache", "attention"] {
        assert!(names(&llama).contains(&name.to_owned()), "{name}");
    }
    for name in ["causal_conv", "delta_rule", "gated_norm"] {
        assert!(
            names(&qwen).contains(&name.to_owned()) && !names(&llama).contains(&name.to_owned()),
            "{name}"
        );
    }
    assert!(column(&qwen, "us").iter().all(|us| *us > 0.0), "{qwen:?}");
}

#[test]
fn mistakes_are_one_line() {
    for (args, says) in [
        (&["kernels", "--shapes", "64by64"][..], "OUTxIN"),
        (&["kernels", "--specs", "2-255"], "2-255"),
        (&["operations", "--rows", "65", "--positions", "64"], "65 rows up to position 63"),
        (&["-p", "0"], "at least 1"),
    ] {
        let output = bench(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.starts_with("error: ") && error.lines().count() == 1,
            "{error}"
        );
        assert!(error.contains(says), "{error}");
    }
}
