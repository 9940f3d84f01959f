package engine

import (
	"fmt"
	"time"
)

// Runs is an SQL condition: a lease has not ended, by the clock of the database. The column has the time at which it ends. A
// server sets that to d from now. A lease whose end is further away than twice d counts as ended, because the clock was wrong
// when it was set, or the row was altered; without that rule, no server would take over. It is twice d, so that servers keep
// their leases if the clock is set back a little, or if a standby takes over whose clock is behind.
func Runs(db DB, column string, d time.Duration) string {
	return fmt.Sprintf(`(%s BETWEEN %s AND %s + %d)`, column, db.Now(), db.Now(), 2*d.Milliseconds())
}
