package postgres

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// oldest is the oldest supported version of PostgreSQL, as server_version_num.
const oldest = 140000

// SettingError means that the server is not set up so that a store can rely on it.
type SettingError struct {
	Setting string // its name
	Have    string // its value
	Want    string // what to do
}

// Error names the setting and the next step.
func (e *SettingError) Error() string {
	return fmt.Sprintf("PostgreSQL has %s %s: %s", e.Setting, e.Have, e.Want)
}

// durable selects the settings without which a commit is not durable, for checkDurable.
const durable = `current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')`

// checkDurable refuses settings with which a commit is not durable.
func checkDurable(settings [][]byte) error {
	for i, name := range []string{"fsync", "full_page_writes"} {
		if have := string(settings[i]); have != "on" {
			return &SettingError{name, have, "set it to on, or a crash of the machine loses certificates"}
		}
	}
	if have := string(settings[2]); have != "on" && have != "remote_apply" {
		return &SettingError{"synchronous_commit", have, "set it to on or remote_apply, for this account too, or a failover loses certificates"}
	}
	return nil
}

// setUp sets the limits of a session, if that belongs to this client. A statement has no limit that an account may have: the
// context of its transaction ends it. They are not in the startup message, because a connection pooler refuses it then, and
// check cannot say why. tcp_user_timeout ends a connection to a client that does not take a result:
// idle_in_transaction_session_timeout does not apply while PostgreSQL sends. tcp_keepalives end those of a client that has
// vanished, which would otherwise count for max_connections for hours, and keep a restore or a migration of the tables waiting.
// Neither statement_timeout nor client_connection_check_interval is set, because they end the wait of a COMMIT for a synchronous
// standby: the transaction then has taken effect, and a failover loses it.
var setUp = fmt.Sprintf(`set_config('idle_in_transaction_session_timeout', '%d', false), set_config('lock_timeout', '%d', false), `+
	`set_config('tcp_user_timeout', '%d', false), set_config('tcp_keepalives_idle', '%d', false), set_config('tcp_keepalives_interval', '%d', false), `+
	`set_config('statement_timeout', '0', false), `+plans,
	maxIdle.Milliseconds(), (maxWrite / 2).Milliseconds(), maxSilence.Milliseconds(), int(probeAfter.Seconds()), int(probeEvery.Seconds()))

// plans has PostgreSQL plan each statement once for a connection, with the indexes that it was written for. Otherwise it would
// plan by the statistics of its tables. It has none of new tables, and so reads a growing table from its start for each batch.
const plans = `set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false), ` +
	`set_config('enable_hashjoin', 'off', false), set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false)`

// check sets up a new connection. It refuses one on which a commit would not be durable, or whose session is not its own. It
// is called for each new connection, because another server may be behind it after a failover. It takes one round trip.
func check(ctx context.Context, conn *pgx.Conn) error {
	results, err := conn.PgConn().Exec(ctx, fmt.Sprintf(`
		SELECT current_setting('server_version_num'), pg_backend_pid(), pg_is_in_recovery(), current_setting('server_encoding'), `+durable+`,
		       CASE WHEN pg_backend_pid() = %d AND CAST(current_setting('server_version_num') AS integer) >= %d THEN CAST((`+setUp+`) AS text) END`,
		conn.PgConn().PID(), oldest)).ReadAll()
	if err != nil {
		return err
	}
	row := results[0].Rows[0]
	if version, err := strconv.Atoi(string(row[0])); err != nil || version < oldest {
		return &SettingError{"server_version_num", string(row[0]), fmt.Sprintf("run PostgreSQL %d or newer", oldest/10000)}
	}
	if process := string(row[1]); process != fmt.Sprint(conn.PgConn().PID()) {
		return &SettingError{"the process", process, "connect to it directly, because a connection pooler such as PgBouncer is between: " +
			"it gives one session to several clients, and the locks of a store belong to its session"}
	}
	if string(row[2]) == "t" {
		return errStandby
	}
	if have := string(row[3]); have != "UTF8" {
		return &SettingError{"server_encoding", have, "create the database with ENCODING 'UTF8'"}
	}
	return checkDurable(row[4:])
}
