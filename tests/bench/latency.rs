//! How long until a change made on one server is visible on another: a state through gossip and a turn
//! through a stream, each against a row through plain logical replication, in turn. Arguments: two connection strings, rounds.
//! Prints `name p50_microseconds p99_microseconds` lines.

use std::error::Error;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

/// Changes something on `a`, then asks `b` until it shows. From before the change to after the
/// answer.
fn visible_after(
    a: &mut Client,
    b: &mut Client,
    change: &str,
    query: &str,
    expected: i64,
) -> Result<f64, Box<dyn Error>> {
    let query = b.prepare(query)?;
    let start = Instant::now();
    a.execute(change, &[])?;
    loop {
        if b.query_one(&query, &[])?.get::<_, i64>(0) >= expected {
            return Ok(start.elapsed().as_secs_f64() * 1e6);
        }
        if start.elapsed() > Duration::from_secs(10) {
            return Err("the change did not arrive within 10 s".into());
        }
    }
}

fn report(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!(
        "{name} {:.0} {:.0}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let (mut a, mut b) = (
        Client::connect(&arguments[1], NoTls)?,
        Client::connect(&arguments[2], NoTls)?,
    );
    let rounds: i64 = arguments[3].parse()?;
    let (mut gossip, mut replication) = (Vec::new(), Vec::new());
    let (mut stream, mut operations) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        gossip.push(visible_after(
            &mut a,
            &mut b,
            "SELECT coord.state_record_satisfied('latency', 1)",
            "SELECT coalesce((SELECT coord.constraint_satisfied(value)::bigint
                                FROM coord.state WHERE name = 'latency'), 0)",
            round,
        )?);
        replication.push(visible_after(
            &mut a,
            &mut b,
            "INSERT INTO trickle DEFAULT VALUES",
            "SELECT count(*) FROM (SELECT FROM trickle OFFSET 0) t",
            round,
        )?);
        stream.push(visible_after(
            &mut a,
            &mut b,
            "SELECT coord.record_turn('personal', 'latency', 'user', 'Where shall we go?')",
            "SELECT count(*) FROM coord.turn WHERE conversation_id = 'latency'",
            round,
        )?);
        operations.push(visible_after(
            &mut a,
            &mut b,
            "INSERT INTO bare_op (origin, seq, hlc, op_id, scope, surface, payload)
             SELECT 'a', count(*), coord.hlc_now(), md5(count(*)::text), 'personal', 'conversation',
                    '{\"conversation_id\": \"latency\", \"role\": \"user\", \"content\": \"Where shall we go?\"}'
               FROM bare_op",
            "SELECT count(*) FROM bare_op",
            round,
        )?);
        // A trickle, not a load.
        std::thread::sleep(Duration::from_millis(5));
    }
    report("gossip", gossip);
    report("replication", replication);
    report("stream", stream);
    report("operations", operations);
    Ok(())
}
