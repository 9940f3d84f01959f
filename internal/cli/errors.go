package cli

// failure is an error of a command that was used correctly. Every other error is wrong use.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Usage is wrong use that is found while a command runs. Its text says what to type instead.
type Usage struct {
	text  string
	cause error // what is wrong with a value, or nil
}

// Error returns what is wrong, and what to type instead.
func (u *Usage) Error() string {
	switch {
	case u.cause == nil:
		return u.text
	case u.text == "":
		return u.cause.Error()
	default:
		return u.text + ": " + u.cause.Error()
	}
}

// Unwrap returns what is wrong with a value, or nil.
func (u *Usage) Unwrap() error { return u.cause }

// WrongUse returns a [*Usage] with a text that says what to type instead.
func WrongUse(text string) error { return &Usage{text: text} }

// WrongFlag returns a [*Usage] for the value of a flag, environment variable or file, such as "--lifetime". The error says what
// would pass.
func WrongFlag(name string, err error) error { return &Usage{text: name, cause: err} }

// WrongArgument returns a [*Usage] for an argument. The error says what would pass.
func WrongArgument(err error) error { return &Usage{cause: err} }
