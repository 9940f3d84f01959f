package agent

import (
	"context"
	"flag"
	"io"
	"strings"

	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/internal/service"
)

// serviceLog returns the log of the run command, which outlives the reader of standard error. At SIGHUP the configuration is
// read again. The caller closes the log at the end.
func (set settings) serviceLog(ctx context.Context, flags *flag.FlagSet, w io.Writer) *service.Log {
	log := service.NewLog(w, set.Log.Format, set.Log.Level)
	file, values := value(flags, "config"), keyValues("run", flags)
	service.OnHangup(ctx, service.Hangups(), func() { set.logChanges(ctx, file, values, log) })
	return log
}

// logChanges logs which keys of the configuration changed and apply at the next start. The agent reloads none of them: it
// reads credentials and tokens, which do change, whenever it needs them.
func (set settings) logChanges(ctx context.Context, file string, values []config.Value, log *service.Log) {
	if file == "" {
		log.WarnContext(ctx, "nothing is reloaded: the agent runs without a configuration file, and its flags wait for a restart")
		return
	}
	next, err := loadSettings(file, values)
	if err != nil {
		log.ErrorContext(ctx, "reloading the configuration failed, the one before still applies", "error", err)
		return
	}
	log.WarnContext(ctx, "nothing is reloaded: changed keys wait for a restart", "keys", strings.Join(config.Changed(set, next), ","))
}
