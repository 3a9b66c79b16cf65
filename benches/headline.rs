//! `cargo bench`: the numbers that Posthaste is held to, measured with Postfix beside it in the same run.
//!
//! ```text
//! cargo bench                      all rows, with Postfix (needs root; installed where it is missing)
//! cargo bench -- --quick           small numbers, without Postfix: whether it works, not how fast it is
//! cargo bench -- --only distinct   one row
//! cargo bench -- --json            one JSON object instead of the table
//! ```
//!
//! Load and receivers are the library's `rehearse`, the relay is the real binary as a child process, and every byte that
//! either relay accepts is fsynced. All of it shares the machine's cores, so the ratio says more than the seconds.

mod machine;
mod postfix;
mod rows;
mod stage;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::rows::Row;
use crate::table::Table;

/// What `cargo bench -- ...` can be told.
#[derive(Debug, Parser)]
struct Arguments {
    /// Small numbers and no Postfix.
    #[arg(long)]
    quick: bool,
    /// This row alone; may be given several times.
    #[arg(long, value_name = "ROW")]
    only: Vec<Row>,
    /// Leaves Postfix out.
    #[arg(long)]
    no_postfix: bool,
    /// Prints one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Where spools lie; both relays use the same disk.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(Arguments::parse()))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("the benchmark could not be carried out: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every target was met; `--quick` has none to miss.
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let setting = rows::Setting {
        quick: arguments.quick,
        beside_postfix: !arguments.quick && !arguments.no_postfix,
        directory: arguments.directory.unwrap_or_else(std::env::temp_dir),
    };
    let mut table = Table::new(machine::facts(&setting.directory)?);
    for row in Row::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(row) {
            eprintln!("{} ...", row.title(&setting));
            table.add(row.title(&setting), row.measure(&setting).await?);
        }
    }
    println!("{}", if arguments.json { table.json() } else { table.to_string() });
    Ok(arguments.quick || table.all_met())
}
