package enroll

import (
	"context"
	"os/exec"
	"strings"
	"time"
)

// reloadTimeout bounds the reload command, unless the next renewal is due sooner.
const reloadTimeout = 30 * time.Second

// maxReloadOutput is how many octets of a failed command's output are logged.
const maxReloadOutput = 1024

// reload tells the programs that use the files about the new ones. The credential stays in use whatever they say.
func (a *Agent) reload(ctx context.Context, p *Pair) {
	argv := a.config.Reload
	if len(argv) == 0 {
		a.status.Reloaded = p.Serial()
		return
	}
	limit := min(reloadTimeout, max(a.renewAt.Sub(a.now()), time.Second))
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var output tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second // a grandchild that keeps the output open is not waited for
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		a.config.Log.Error("the reload command failed; the new credential stays in use", "command", strings.Join(argv, " "), "error", err, "output", string(output))
		return
	}
	a.status.Reloaded = p.Serial()
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if n := len(*t) - maxReloadOutput; n > 0 {
		*t = append((*t)[:0], (*t)[n:]...)
	}
	return len(p), nil
}
