//! A scheduler of an older version, as it was recorded.

use pondhawk_proto::v1 as proto;
use proto::{SchedulerMessage, peer_message::Body as Sent};

use super::{secrets::talk, *};

#[path = "../../../../../proto/recorded/read.rs"]
mod recorded;

#[tokio::test]
async fn a_scheduler_of_an_older_version_is_understood_and_leads_downloads() {
    let task = TaskId([7; 32]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    soon(tokio::task::spawn_blocking(move || fill(&path, task, 2))).await.unwrap();
    let (exchange, store) = (Arc::new(Exchange::default()), open_store(dir.path()));
    let mut talk = talk(&exchange, &store);
    let mut member = None;
    let mut all = Vec::new();
    for (kind, message) in recorded::recorded::<SchedulerMessage>("scheduler") {
        talk.say(message.body.unwrap()).await;
        match kind {
            "welcome" => {
                talk.until(|sent| matches!(sent, Sent::Inventory(inventory) if inventory.last)).await;
                until(|| (exchange.standing() == Standing::Up { epoch: 77 }).then_some(())).await;
                member = Some(exchange.join(task));
            }
            "digests-wanted" => {
                let told = |sent: &Sent| match sent {
                    Sent::Progress(progress) => progress.tasks.iter().any(|task| !task.digests.is_empty()),
                    _ => false,
                };
                talk.until(told).await;
            }
            "ping" => talk.until(|sent| matches!(sent, Sent::Pong(pong) if pong.nonce == 5)).await,
            _ => {}
        }
    }
    let member = member.unwrap();
    all.extend(told(&member, |told| told.contains(&Told::LeaseEnd(4))).await);
    let parent = |told: &Told| matches!(told, Told::Link(parent) if parent.peer.to_string() == "node-b" && parent.seed);
    assert!(all.iter().any(parent), "{all:?}");
    assert!(all.contains(&Told::Lease { id: 4, pieces: 2..5 }) && all.contains(&Told::Disputed(1)), "{all:?}");
    assert!(all.contains(&Told::Digests(0, vec![[9; 32]; 2])), "{all:?}");
    assert!(exchange.paused("cdn.example").is_some());
}
