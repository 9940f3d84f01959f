package cli

// failure is an error of a command whose command line and configuration were correct. Every other error is wrong use.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Usage is an error in the command line or the configuration that is found while a command runs. Its text says what to
// type instead.
type Usage struct {
	text  string
	cause error // what is wrong with the value of a flag, or nil
}

// Error returns what is wrong and what to type instead.
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

// Unwrap returns what is wrong with the value of a flag, or nil.
func (u *Usage) Unwrap() error { return u.cause }

// WrongUse returns a [*Usage] with a text that says what to type instead.
func WrongUse(text string) error { return &Usage{text: text} }

// WrongFlag returns a [*Usage] about the value of a flag, environment variable or file. name is its name, such as
// "--lifetime". err must say which values are allowed.
func WrongFlag(name string, err error) error { return &Usage{text: name, cause: err} }

// WrongArgument returns a [*Usage] about an argument. err must say which arguments are allowed.
func WrongArgument(err error) error { return &Usage{cause: err} }
