#!/usr/bin/env bash
# A real SLURM on one machine, for trying and testing the launcher: munged, slurmctld and two slurmd that play the nodes
# n1 and n2, each with 4 CPUs and 2 GPUs that exist in name only. Root is needed (a container will do), systemd is not.
#
#   scripts/slurm_dev_cluster.sh up                   # start it, wait until both nodes are idle
#   eval "$(scripts/slurm_dev_cluster.sh env)"        # this shell's sbatch, squeue, ... now talk to it
#   sbatch -N2 --wrap 'srun hostname'                 # partitions: main (default), and low, which high preempts
#   scripts/slurm_dev_cluster.sh down                 # stop it
#
# usage: slurm_dev_cluster.sh COMMAND [FOLDER] [OPTIONS]
#   up                   start; every start begins with an empty queue. Options: --accounting (mariadbd and slurmdbd, so
#                        that sacct answers), --port N (the first of the ports in use; a second cluster needs another),
#                        --max-array-size N
#   down                 stop its daemons and jobs; its logs stay
#   status               say what runs; the exit status is 0 when the cluster is up
#   env                  print the line that makes a shell use it
#   restart-controller   kill -9 slurmctld, then start it again with its state, which is saved every five seconds
#   node-down NAME       make a node vanish with everything that runs on it (node-down n1 [FOLDER])
#   node-up NAME         bring it back
#
# Everything lies in FOLDER (default ~/.cache/lorsa/slurm-dev). The one thing outside it is a line in /etc/hosts, added
# where n1 and n2 do not resolve: the first node's name is the address at which the tasks of a job meet.
set -euo pipefail

say() { printf '%s\n' "$*"; }
die() { printf 'slurm_dev_cluster: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0"; }

# --- Arguments ----------------------------------------------------------------------------------------------------

command="${1:-help}"
[ $# -gt 0 ] && shift
node="" folder="" accounting=no port=17100 max_array_size=1001
case "$command" in
    up | down | status | env | restart-controller) ;;
    node-down | node-up)
        node="${1:-}"
        [ $# -gt 0 ] && shift
        case "$node" in n1 | n2) ;; *) die "$command needs the name of a node, n1 or n2." ;; esac ;;
    help | -h | --help) usage; exit 0 ;;
    *) die "unknown command '$command'; choose from up, down, status, env, restart-controller, node-down, node-up." ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
        --accounting) accounting=yes ;;
        --port | --max-array-size)
            [[ "${2:-}" =~ ^[1-9][0-9]{0,6}$ ]] || die "$1 needs a number."
            if [ "$1" = --port ]; then port="$2"; else max_array_size="$2"; fi
            shift ;;
        -*) die "unknown option '$1'; choose from --accounting, --port N, --max-array-size N." ;;
        *) [ -z "$folder" ] || die "one folder, please: got '$folder' and '$1'."; folder="$1" ;;
    esac
    shift
done
folder="$(realpath -m -- "${folder:-${XDG_CACHE_HOME:-$HOME/.cache}/lorsa/slurm-dev}")"
# A Unix socket's path may have 107 characters, and SLURM reads its configuration by words.
[[ "$folder" =~ ^[A-Za-z0-9/._-]{2,70}$ ]] ||
    die "the folder's path must be short and plain (70 characters of A-Z a-z 0-9 / . _ -): $folder"
[ $((port + 4)) -lt 65536 ] || die "--port must be below 65532."

# Exported: the daemons' environment is also how `down` knows that they are this cluster's.
export SLURM_CONF="$folder/slurm.conf"

# --- Processes ----------------------------------------------------------------------------------------------------

# Whether a process lives and is this cluster's: after a crash, a pid file's number may have become a stranger's.
ours() {
    grep -qsxzF "SLURM_CONF=$SLURM_CONF" "/proc/$1/environ" && [[ "$(ps -o stat= -p "$1")" != Z* ]]
}

pid_of() {
    local pid
    pid="$(cat "$folder/run/$1.pid" 2>/dev/null)" && [ -n "$pid" ] && ours "$pid" && say "$pid"
}

wait_until() {  # SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

gone() { ! ours "$1"; }

# A daemon takes its pid file away before it is gone.
stop() {  # NAME [SIGNAL]
    local pid
    if pid="$(pid_of "$1")"; then
        kill "-${2:-TERM}" "$pid" 2>/dev/null || true
        if ! wait_until 10 gone "$pid"; then
            kill -KILL "$pid" 2>/dev/null || true
            wait_until 5 gone "$pid" || die "process $pid ($1) does not die."
        fi
    fi
    rm -f "$folder/run/$1.pid"
}

# Steps outlive their slurmd by design. A step's daemon works in the folder of its node's log (n1, n2 or * for both); a
# task, even one that left its step, says in its environment whose it is.
steps_of() {
    local file pid
    for pid in $(pgrep -x slurmstepd || true); do
        # shellcheck disable=SC2053  # the right side is a pattern
        if [[ "$(readlink "/proc/$pid/cwd")" == "$folder/log/"$1 ]]; then say "$pid"; fi
    done
    for file in $(grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ || true); do
        # shellcheck disable=SC2053
        if [[ "$(sed -zn 's/^SLURMD_NODENAME=//p' "$file" 2>/dev/null | tr -d '\0')" == ${1/\*/n?} ]]; then
            pid="${file#/proc/}"
            say "${pid%/environ}"
        fi
    done
}

# All at once, the steps' daemons first: one that saw its tasks die would report them as failed.
kill_steps() {
    local pids
    for _ in 1 2 3 4 5; do
        pids="$(steps_of "$1")"
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086  # one word per process
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
}

# --- Daemons ------------------------------------------------------------------------------------------------------

# Nothing of a daemon may hold the caller's pipes, or the lock that is open as 9.
start() {  # NAME COMMAND...
    local name="$1" log="$folder/log/$1.start"
    shift
    "$@" >"$log" 2>&1 </dev/null 9>&- || die "$name does not start: $(tail -n 1 "$log") (logs: $folder/log)"
}

start_controller() { start slurmctld slurmctld; }
start_node() { start "$1" slurmd -N "$1"; }

controller_answers() { scontrol ping 2>/dev/null | grep -q 'is UP'; }
node_is() { [ "$(sinfo -h -N -n "$1" -p main -o %t 2>/dev/null)" = "$2" ]; }
node_answers() { sinfo -h -N -n "$1" -p main -o %t 2>/dev/null | grep -qxE 'idle|mix|alloc'; }
is_up() {
    pid_of munged && pid_of slurmctld && pid_of n1 && pid_of n2 && controller_answers
} >/dev/null

lock() {
    exec 9>"$folder/run/lock"
    flock -w 120 9 || die "another command is at work on $folder."
}

need_cluster() { pid_of slurmctld >/dev/null || pid_of munged >/dev/null || die "no cluster is up in $folder."; }

down() {
    local name
    # The controller first, so that nothing is requeued or started while the rest goes.
    stop slurmctld
    # A slurmd has nothing to save, and would wait for its controller.
    for name in n1 n2; do stop "$name" KILL; done
    kill_steps '*'
    for name in slurmdbd mariadbd munged; do stop "$name"; done
    rm -rf "${folder:?}/database"
}

# --- Configuration ------------------------------------------------------------------------------------------------

check_machine() {
    local program packages=()
    [ "$(id -u)" = 0 ] || die "SLURM's daemons need root: run this as root, in a container for example."
    # slurmctld and the like are in sbin.
    for program in slurmctld:slurm-wlm slurmd:slurm-wlm sbatch:slurm-wlm munged:munge pgrep:procps flock:util-linux \
        slurmdbd:slurmdbd mariadbd:mariadb-server mariadb-install-db:mariadb-server; do
        case "$program" in slurmdbd:* | mariadb*) [ "$accounting" = yes ] || continue ;; esac
        command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
    done
    if [ ${#packages[@]} -gt 0 ]; then
        die "missing packages: apt-get update && apt-get install --no-install-recommends $(
            printf '%s\n' "${packages[@]}" | sort -u | tr '\n' ' ')"
    fi
}

check_ports() {
    local last=$((port + 2)) used
    [ "$accounting" = no ] || last=$((port + 4))
    for ((used = port; used <= last; used++)); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$used") 2>/dev/null; then
            die "port $used is taken; choose another first port with --port N (in use are five from N on)."
        fi
    done
}

configure() {
    local host name gpu gpus=""
    host="$(uname -n)"
    host="${host%%.*}"
    rm -rf "${folder:?}"/{state,spool,munge,dev,database,log}
    mkdir -p "$folder"/{state,munge,dev,spool/n1,spool/n2,log/n1,log/n2}
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 600 "$folder/munge/key"

    : >"$folder/gres.conf"
    for name in n1 n2; do
        for gpu in 0 1; do
            # Any character device will do: SLURM only hands out its number.
            if mknod "$folder/dev/$name-gpu$gpu" c 1 3 2>/dev/null; then
                say "NodeName=$name Name=gpu File=$folder/dev/$name-gpu$gpu" >>"$folder/gres.conf"
                gpus="Gres=gpu:2"
            fi
        done
    done
    [ -n "$gpus" ] || say "mknod is not permitted here: the nodes have no GPUs."

    cat >"$SLURM_CONF" <<END
ClusterName=lorsa-dev
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired: two minutes by default.
AuthInfo=socket=$folder/run/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
PropagateResourceLimits=NONE

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MaxArraySize=$max_array_size
MaxJobCount=$((max_array_size + 10000))
JobRequeue=1
ReturnToService=2
# Long enough for a job's script to see that its requeue stands (30 by default).
KillWait=20
OverTimeLimit=0
MessageTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# More CPUs than the machine may have.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=64000 $gpus
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=64000 $gpus
PartitionName=main Nodes=n1,n2 Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=n1,n2 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n1,n2 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
END
    [ "$accounting" = no ] || cat >>"$SLURM_CONF" <<END

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 3))
# Towards slurmdbd, munge's socket goes by this name.
AccountingStoragePass=$folder/run/munge.socket
END

    if ! getent hosts n1 n2 | awk 'END { exit NR != 2 }'; then
        say "127.0.0.1 n1 n2" >>/etc/hosts
        say "Added to /etc/hosts: 127.0.0.1 n1 n2"
    fi
}

mariadb_answers() {
    mariadb --no-defaults --user=root --socket="$folder/run/mariadb.socket" -e "$1" >>"$folder/log/mariadb.start" 2>&1
}

start_accounting() {
    # The database listens on 127.0.0.1 alone, where whoever could connect is root already.
    start mariadb-install-db mariadb-install-db --no-defaults --user=root --datadir="$folder/database" \
        --auth-root-authentication-method=normal --skip-test-db
    setsid mariadbd --no-defaults --user=root --datadir="$folder/database" --socket="$folder/run/mariadb.socket" \
        --pid-file="$folder/run/mariadbd.pid" --port=$((port + 4)) --bind-address=127.0.0.1 --skip-log-bin \
        --innodb-lock-wait-timeout=900 >"$folder/log/mariadbd.log" 2>&1 </dev/null 9>&- &
    wait_until 60 mariadb_answers 'SELECT 1' || die "mariadbd does not answer (log: $folder/log/mariadbd.log)."
    mariadb_answers "CREATE DATABASE slurm_acct_db; CREATE USER slurm@127.0.0.1 IDENTIFIED BY 'slurm';
        GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1;" || die "mariadbd refuses the database (log: $folder/log)."
    cat >"$folder/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 3))
SlurmUser=root
PidFile=$folder/run/slurmdbd.pid
LogFile=$folder/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 4))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
END
    chmod 600 "$folder/slurmdbd.conf"
    start slurmdbd slurmdbd
    wait_until 60 sacctmgr -n show cluster >/dev/null 2>&1 ||
        die "slurmdbd does not answer (log: $folder/log/slurmdbd.log)."
}

resume_node() {
    pid_of "$node" >/dev/null || return 1
    node_answers "$node" || { scontrol update nodename="$node" state=resume 2>/dev/null; node_answers "$node"; }
}

# --- Commands -----------------------------------------------------------------------------------------------------

up() {
    local name
    check_machine
    if [ -d "$folder" ] && [ ! -d "$folder/run" ] && [ -n "$(ls -A "$folder")" ]; then
        die "$folder holds something else; choose an empty or new folder."
    fi
    mkdir -p "$folder/run"
    lock
    if is_up; then
        say "Already up, with the options that it was started with (down, then up, changes them)."
        print_env
        return
    fi
    down
    check_ports
    trap 'down 2>/dev/null' EXIT
    configure
    start munged munged --force --socket="$folder/run/munge.socket" --key-file="$folder/munge/key" \
        --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
    [ "$accounting" = no ] || start_accounting
    start_controller
    for name in n1 n2; do start_node "$name"; done
    for name in n1 n2; do
        wait_until 60 node_is "$name" idle || die "node $name does not become idle (logs: $folder/log)."
    done
    trap - EXIT
    say "SLURM is up. A shell that runs this line uses it:"
    print_env
}

print_env() { say "export SLURM_CONF=$SLURM_CONF"; }

status() {
    local name pid all=0
    for name in munged mariadbd slurmdbd slurmctld n1 n2; do
        if pid="$(pid_of "$name")"; then say "$name: process $pid"; continue; fi
        case "$name" in mariadbd | slurmdbd) ;; *) say "$name: not running"; all=1 ;; esac
    done
    if controller_answers; then
        sinfo
        squeue
    else
        all=1
    fi
    return "$all"
}

case "$command" in
    up) up ;;
    env) print_env ;;
    status) status ;;
    down)
        [ -d "$folder/run" ] || { say "No cluster in $folder."; exit 0; }
        lock
        down
        say "SLURM is down." ;;
    restart-controller)
        need_cluster
        stop slurmctld KILL
        start_controller
        wait_until 30 controller_answers || die "slurmctld does not answer (log: $folder/log/slurmctld.log)." ;;
    node-down)
        need_cluster
        stop "$node" KILL
        kill_steps "$node"
        # Left alone, the controller would take five minutes to notice.
        scontrol update nodename="$node" state=down reason=node-down ;;
    node-up)
        need_cluster
        pid_of "$node" >/dev/null || start_node "$node"
        # A job that has ended is still on its node for a moment; a node comes back when it has registered.
        wait_until 30 resume_node || die "node $node does not come back (log: $folder/log/$node/slurmd.log)." ;;
esac
