//! Parser of PTX: from a text to its kernels and variables.

use super::lex::{Token, tokens};
use super::syntax::{Declared, Instruction, Kernel, Operand, Space, Statement, Variable, size_of};

/// What a text declares.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) kernels: Vec<Kernel>,
    pub(super) variables: Vec<Variable>,
}

/// Reads a text of PTX. Functions that are not kernels are skipped: a call is an instruction that is not known.
pub(super) fn parse(text: &str) -> Result<Text, String> {
    Parser { tokens: tokens(text), at: 0 }.text()
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    fn next(&mut self) -> Result<&'a str, String> {
        let token = self.tokens.get(self.at).ok_or("the PTX ends in the middle of a statement")?;
        self.at += 1;
        Ok(token.text)
    }

    fn take(&mut self, text: &str) -> bool {
        let taken = self.peek() == text;
        self.at += usize::from(taken);
        taken
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.take(text) {
            return Ok(());
        }
        Err(format!("PTX line {}: expected `{text}`, got `{}`", self.line(), self.peek()))
    }

    fn skip_past(&mut self, text: &str) -> Result<(), String> {
        while self.next()? != text {}
        Ok(())
    }

    fn text(mut self) -> Result<Text, String> {
        let mut text = Text::default();
        while self.at < self.tokens.len() {
            match self.peek() {
                ".version" | ".target" | ".address_size" | ".file" | ".section" => self.skip_line(),
                ".visible" | ".weak" | ".extern"
                    if self.tokens.get(self.at + 1).is_some_and(|t| t.text == ".entry") =>
                {
                    self.at += 1;
                }
                ".entry" => text.kernels.push(self.kernel()?),
                ".visible" | ".weak" | ".extern" | ".func" if self.is_function() => self.skip_function()?,
                _ => text.variables.extend(self.variable()?),
            }
        }
        Ok(text)
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    fn is_function(&self) -> bool {
        self.tokens[self.at..].iter().take(2).any(|token| token.text == ".func")
    }

    /// A declaration ends with `;`, a definition with its body.
    fn skip_function(&mut self) -> Result<(), String> {
        let mut depth = 0;
        loop {
            match self.next()? {
                ";" if depth == 0 => return Ok(()),
                "{" => depth += 1,
                "}" if depth == 1 => return Ok(()),
                "}" => depth -= 1,
                _ => {}
            }
        }
    }

    fn kernel(&mut self) -> Result<Kernel, String> {
        self.expect(".entry")?;
        let mut kernel = Kernel { name: self.next()?.to_owned(), ..Kernel::default() };
        if self.take("(") {
            while !self.take(")") {
                kernel.parameters.extend(self.declaration()?);
                self.take(",");
            }
        }
        while !self.take("{") {
            if self.next()?.ends_with("ntid") {
                let mut threads = 1;
                while let Ok(side) = self.peek().parse::<u32>() {
                    threads *= side;
                    self.at += 1;
                    self.take(",");
                }
                kernel.most_threads = Some(threads);
            }
        }
        self.body(&mut kernel)?;
        Ok(kernel)
    }

    fn body(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                "{" => {
                    depth += 1;
                    self.at += 1;
                    kernel.body.push(Statement::Open);
                }
                "}" => {
                    depth -= 1;
                    self.at += 1;
                    kernel.body.push(Statement::Close);
                }
                word if word == ".reg" || word.starts_with(".reg.") => self.registers(&mut kernel.body)?,
                ".pragma" => self.skip_past(";")?,
                ".loc" => self.skip_line(),
                word if word.starts_with('.') => kernel.variables.extend(self.variable()?),
                word if self.tokens.get(self.at + 1).is_some_and(|token| token.text == ":") => {
                    kernel.body.push(Statement::Label(word.to_owned()));
                    self.at += 2;
                }
                ";" => self.at += 1,
                _ => {
                    let instruction = self.instruction()?;
                    kernel.body.push(Statement::Instruction(instruction));
                }
            }
        }
        Ok(())
    }

    fn registers(&mut self, body: &mut Vec<Statement>) -> Result<(), String> {
        let kind = match self.next()?.strip_prefix(".reg.") {
            Some(kind) => kind.to_owned(),
            None => self.next()?.trim_start_matches('.').to_owned(),
        };
        loop {
            let name = self.next()?.to_owned();
            let count = if self.take("<") {
                let count =
                    self.next()?.parse().map_err(|_| format!("PTX line {}: how many registers?", self.line()))?;
                self.expect(">")?;
                Some(count)
            } else {
                None
            };
            body.push(Statement::Registers(Declared { kind: kind.clone(), name, count }));
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    fn variable(&mut self) -> Result<Option<Variable>, String> {
        let variable = self.declaration()?;
        self.skip_past(";")?;
        Ok(variable)
    }

    /// `.shared .align 4 .b8 name[32]`, up to what ends it or gives it a value; none for a state that is not a space.
    fn declaration(&mut self) -> Result<Option<Variable>, String> {
        let (mut space, mut align, mut size, mut is_extern) = (None, None, None, false);
        while self.peek().starts_with('.') {
            match self.next()?.trim_start_matches('.') {
                "shared" => space = Some(Space::Shared),
                "global" => space = Some(Space::Global),
                "const" => space = Some(Space::Const),
                "local" => space = Some(Space::Local),
                "param" => space = Some(Space::Param),
                "extern" => is_extern = true,
                "align" => align = self.next()?.parse().ok(),
                kind => size = size_of(kind).or(size),
            }
        }
        let name = self.next()?.to_owned();
        let element = size.unwrap_or(1);
        let mut count = 1;
        while self.take("[") {
            count *= if self.peek() == "]" { 0 } else { self.next()?.parse().unwrap_or(0) };
            self.expect("]")?;
        }
        let declared =
            |space| Variable { space, name, align: align.unwrap_or(element), size: element * count, is_extern };
        Ok(space.map(declared))
    }

    fn instruction(&mut self) -> Result<Instruction, String> {
        let line = self.line();
        let mut guard = None;
        if self.take("@") {
            let negated = self.take("!");
            guard = Some((self.next()?.to_owned(), negated));
        }
        let opcode = self.next()?.to_owned();
        let mut operands = Vec::new();
        if opcode.starts_with("call") {
            self.skip_past(";")?;
            return Ok(Instruction { line, guard, opcode, operands });
        }
        while !self.take(";") {
            operands.push(self.operand()?);
            if !self.take(",") {
                self.expect(";")?;
                break;
            }
        }
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand, String> {
        if self.take("{") {
            let mut parts = Vec::new();
            while !self.take("}") {
                parts.push(self.operand()?);
                self.take(",");
            }
            return Ok(Operand::Vector(parts));
        }
        if self.take("[") {
            return self.address();
        }
        if self.take("!") {
            return Ok(Operand::Not(self.next()?.to_owned()));
        }
        let negative = self.take("-");
        let word = self.next()?;
        if word.starts_with(|first: char| first.is_ascii_digit()) {
            return number(word, negative).ok_or_else(|| format!("PTX line {}: `{word}` is no number", self.line()));
        }
        if self.take("|") {
            return Ok(Operand::Both(word.to_owned(), self.next()?.to_owned()));
        }
        Ok(Operand::Name(word.to_owned()))
    }

    fn address(&mut self) -> Result<Operand, String> {
        let (mut base, mut offset) = (None, 0i64);
        while !self.take("]") {
            match self.operand()? {
                Operand::Name(sign) if sign == "+" => {}
                Operand::Name(name) => base = Some(name),
                Operand::Number(bits) => offset = offset.wrapping_add(bits as i64),
                other => return Err(format!("PTX line {}: `{other:?}` in an address", self.line())),
            }
        }
        Ok(Operand::Address(base, offset))
    }
}

/// `12`, `0x1F`, `077`, `12U`, `0f3F800000`, `0d3FF0000000000000`, `1.5`.
fn number(word: &str, negative: bool) -> Option<Operand> {
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    if let Some(digits) = word.strip_prefix("0f").or(word.strip_prefix("0F")) {
        return hex(digits).map(|bits| Operand::Single(bits as u32 ^ u32::from(negative) << 31));
    }
    if let Some(digits) = word.strip_prefix("0d").or(word.strip_prefix("0D")) {
        return hex(digits).map(|bits| Operand::Number(bits ^ u64::from(negative) << 63));
    }
    if word.contains('.') {
        let value: f64 = word.parse().ok()?;
        return Some(Operand::Number(if negative { -value } else { value }.to_bits()));
    }
    let digits = word.trim_end_matches('U');
    let value = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(digits) => hex(digits)?,
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8).ok()?,
        None => digits.parse().ok()?,
    };
    Some(Operand::Number(if negative { value.wrapping_neg() } else { value }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_all_kinds_of_statements() {
        let text = "
.version 9.0
.target sm_80
.extern .shared .align 16 .b8 dynamic[];
.extern .func helper ( .param .b64 a ) ;
.global .align 1 .b8 message[3] = {1, 2, 3};
.visible .entry one( .param .u64 one_0, .param .align 4 .b8 one_1[12] )
.maxntid 8, 4, 1
{
    .reg .pred %p<3>;
    .shared .align 8 .b8 scratch[64];
    $L_0:
    @!%p1 bra $L_0;
    { .reg .b32 %temp; mov.b64 {%temp, %r1}, %rd1; }
    shfl.sync.bfly.b32 %r1|%p2, %r2, 16, 31, -1;
    fma.rn.f32 %f1, %f2, 0fBF800000, %f3;
    st.shared.v2.u32 [scratch+8], {%r1, %r2};
    ret;
}";
        let text = parse(text).unwrap();
        let kernel = &text.kernels[0];
        assert_eq!((kernel.most_threads, kernel.parameters[1].size, kernel.variables[0].align), (Some(32), 12, 8));
        assert!(text.variables[0].is_extern && text.variables[1].size == 3);
        let instructions: Vec<_> = kernel
            .body
            .iter()
            .filter_map(|statement| if let Statement::Instruction(it) = statement { Some(it) } else { None })
            .collect();
        assert_eq!(instructions[0].guard, Some(("%p1".to_owned(), true)));
        assert_eq!(instructions[2].operands[0], Operand::Both("%r1".to_owned(), "%p2".to_owned()));
        assert_eq!(instructions[2].operands[4], Operand::Number(u64::MAX));
        assert_eq!(instructions[3].operands[2], Operand::Single(0xBF80_0000));
        assert_eq!(instructions[4].operands[0], Operand::Address(Some("scratch".to_owned()), 8));
        assert_eq!(instructions[5].opcode, "ret");
    }
}
